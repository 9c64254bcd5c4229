"""The decoder: one forward for the Llama, Mistral, Yi, Qwen2, Qwen3 and SmolLM families; layouts, heads, files.

    config -> Decoder(layout) -> hidden_TD -> token_logps (language model) | ScalarModel (sequence score)

Nothing here imports transformers; parity with it is a test.
"""
