"""Several methods on one model, one preference file and one budget: "DPO or RLHF, on my data?"

    run_study(...)      what `trueline study` runs; the report is its answer

    arms      what --methods names: an objective with its options, or a selector that answers with the best of n
    rows      prompts by use (train, judge, tuning, report), and preferences as the rows that an objective needs
    cells     finished work, named by what it was made from
    training  one policy or reward model        measure   its answers to prompts: reward, KL, length
    budget    updates per arm                   outcome   measurements to intervals        verdict   which to choose
    job       from first line to last           report    the page
"""
