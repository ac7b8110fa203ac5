"""The method, and nothing else: what to read to know how VPTSP is trained and tested.

In this order: config, presets, backbone (hub), vit (head), adapters, lora, accumulators, proxies, class_prompts,
losses, model, sampler, step, metrics, neighbours (faiss_index); textbook, beside them, is the plain form that tests
compare with.
"""
