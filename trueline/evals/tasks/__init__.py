"""Tasks of lm-evaluation-harness: the model side (our engine), the task side (files that read a local folder of data), the results.

    rows.py      TRUELINE_DATA/eval/*.jsonl.gz -> documents        *.yaml   what is asked, and how it is scored
    model.py     text and choices -> ids -> log-probs, responses   harness.py   names of tasks -> results

Only `trueline eval --tasks` imports model.py and harness.py: lm_eval and what it imports load then.
"""
