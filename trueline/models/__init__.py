"""The decoder: one forward for every family of families/; layouts, heads, files.

    config -> Decoder(layout) -> hidden_TD -> token_logps (language model) | ScalarModel (sequence score)

Nothing here imports transformers; parity with it is a test.
"""
