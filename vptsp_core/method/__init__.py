"""The method, and nothing else. Read it to know how VPTSP is trained and tested, in this order:

config, presets, backbone (hub, weights), attention, vit, adapters, lora, accumulators, proxies, class_prompts, losses,
model, sampler, step, loop, metrics, neighbours (faiss_index). textbook is the plain form that tests compare with.
"""
