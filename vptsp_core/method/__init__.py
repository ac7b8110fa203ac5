"""The method of VPTSP, and nothing else: how a model is built, trained, and tested.

The modules of this folder import nothing else of the package but `vptsp_core.errors`. (Python runs the package's own
``__init__`` before them. It prepares the import of timm.)

Read the modules in this order; it takes about an hour. Skip the modules in brackets: they serve the module before them.

==========================  ==========================================================================
config, presets             the settings of a run, and the released sets of settings
  (value_types)             the check of a setting's type
backbone                    the frozen vision transformer
  (hub)                     whether pretrained weights can be downloaded
  (weights, weights_file)   files of weights: their layouts of keys, and their file formats
vit, attention              two towers over one backbone; attention is where prompts enter
adapters, lora              other ways to tune a backbone, for comparison with prompts
proxies, accumulators       semantic proxies, and the units that update them
class_prompts               the learnable prompts of every class
losses                      Proxy-Anchor
model                       all parts together; the optimisers; what learns
sampler                     which images are in a batch
step, loop                  one optimiser step; epochs of steps
metrics                     R@K, MAP@R and R-precision
  (inputs)                  embeddings and labels of many kinds, read as tensors
  (torch_state)             protection of the results from a caller's settings of torch
neighbours                  the exact search behind the metrics
  (faiss_index)             the same search by faiss
textbook                    the plain form of the two towers, which the tests compare with
==========================  ==========================================================================

Sizes, unless a docstring says otherwise:

=======  ====================================================
D, d     the width of the backbone; the width of an embedding
A        the width of attention, usually D
B, b     images in a batch; the share of one process
T        tokens per image
C        classes of the training set
k, C'    images per class in a batch; classes in a batch, B / k
N, L     prompts per block; blocks with prompts
m, L_c   prompts per class and block; blocks with class prompts
=======  ====================================================
"""
