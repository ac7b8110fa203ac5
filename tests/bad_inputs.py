# ruff: noqa: E501  (messages, word for word)
"""Bad and odd input as one table: what is given, to which command, and what is said, word for word.

tests/test_bad_inputs.py does what every line says.
In messages DIR is the user's folder and RUN a run's folder name, which ends with the run's hash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bad_images as images
import bad_models as models
import bad_runs as runs
import bad_sets as sets

WORKS = "works: "


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        given: what it is, for people.
        call: the command, or the Python call, for people.
        do: makes it and calls; gives what was said, without "error: ". Where it works it compares with what is expected
            and gives what it warned of.
        message: what is to be said; or "works: " and how it is taken, in words, ``warning`` being what is said then.
    """

    given: str
    call: str
    do: Callable
    message: str
    warning: str = ""


ALL = "`train` (both pipelines), `data check --decode`, `embed`"


def image(given: str, make: Callable, message: str) -> Case:
    return Case(given, ALL, lambda desk: images.refused_everywhere(desk, make), message)


TABLE: dict[str, list[Case]] = {
    "Images": [
        image("JPEG cut short", images.truncated_jpeg,
              "image DIR/data/b/odd.jpg: unreadable (image file is truncated (267 bytes not processed)); replace the file"),
        image("no bytes", images.empty, "image DIR/data/b/odd.jpg: unreadable (the file is empty); replace the file"),
        image("a web page named .jpg", images.web_page,
              "image DIR/data/b/odd.jpg: unreadable (its content is a web page, a failed download?); replace the file"),
        image("decompression bomb: 1 kB of PNG that says 60,000 x 60,000 pixels", images.bomb,
              "image DIR/data/b/odd.png: unreadable (Image size (3600000000 pixels) exceeds limit of 178956970 pixels, "
              "could be decompression bomb DOS attack.); replace the file"),
        image("floating-point TIFF", images.floats, "image DIR/data/b/odd.tif: floating-point pixels have no known "
              "range; convert it to 8 bits a channel"),
        image("32 bits, values above 65,535", images.large_numbers,
              "image DIR/data/b/odd.tif: its values do not fit into 16 bits; convert it to 8 bits a channel"),
        image("32 bits, values of 8 bits", images.small_numbers,
              f"image DIR/data/b/odd.tif: its values end at {images.PHOTO[..., 0].max()} of 65,535; spread them over the "
              "range, or convert it to 8 bits a channel"),
        image("a strip of 1 x 60,000 pixels", images.strip,
              "image DIR/data/b/odd.png: 60000 x 1 pixels, more than 256 times as long as wide; leave it out"),
        Case("a folder named .jpg", "`embed`", images.folder_embedded,
             "image DIR/data/b/odd.jpg: unreadable (Is a directory); replace the file"),
        Case("a folder named .jpg, among one's images", "`train`", images.folder_trained,
             WORKS + "it is left out, with a warning",
             "warning: folder: 1 thing(s) in DIR/data are ignored, being no images or folders of them, the first "
             "b/odd.jpg; 1 image(s) in sub-folders of class folders are not used"),
        Case("no such file", "`embed`", images.absent, "image DIR/none.jpg: no such file; check the path"),
        Case("nothing", "`embed`", images.nothing, "no images to embed; give at least one"),
        Case("a tensor of another shape", "`embed`", images.wrong_tensor,
             "images of shape (1, 3, 8, 8) and type float32; the model takes (N, 3, 40, 40) floating point, normalised"),
        Case("odd images, all in one folder (`bad_images.ODD`)", ALL, images.all_read,
             WORKS + "each as `bad_images` says; one has EXIF that Pillow warns of",
             "warning: Corrupt EXIF data.  Expecting to read 12 bytes but only got 2."),
    ],
    "Data sets": [
        Case("no folder given", "`data check cub200`", sets.no_folder,
             "cub200: which folder? give --data DIR, or set VPTSP_DATA"),
        Case("no such folder", "`data check cub200`", sets.absent_folder,
             "cub200: no folder DIR/cub200/images; unpack the data set there, or name its parent with --data"),
        Case("unknown name", "`train`", sets.unknown_name, "data set 'cub' is not known; known: "
             "glyphs, cub200, cars196, sop, inshop, inaturalist, folder, own"),
        Case("missing list, SOP", "`data check sop`", sets.no_list("sop"),
             "sop: no Info_Files/Ebay_train.txt or Ebay_train.txt in DIR/online_products; python -m vptsp_core data get "
             "sop says how to get it"),
        Case("empty class of a benchmark", "`data check cub200`", sets.empty_class,
             "cub200: DIR/cub200/images holds 1 training classes instead of 100, 2 training images instead of 5864, 1 "
             "test classes instead of 100, 2 test images instead of 5924, 1 class folder(s) without images, the first "
             "002.empty; complete it, or accept this with --allow-partial"),
        Case("empty class among one's own", "`data check folder`", sets.own_empty_class,
             WORKS + "it is left out, with a warning",
             "warning: folder: 1 thing(s) in DIR/data are ignored, being no images or folders of them, the first "
             "empty/ without images"),
        Case("class of one image", "`data check folder`", sets.class_of_one,
             "class DIR/data/one has 1 image(s), at least 2 are needed; add or remove it"),
        Case("path listed twice", "`data check folder`", sets.split("a/0.png,a,train", "a/./0.png,b,test"),
             "folder: DIR/data/split.csv lists a/./0.png twice (line 2, 3); keep one of the two lines"),
        Case("class both for training and for testing", "`data check folder`",
             sets.split("a/0.png,a,train", "a/1.png,a,test"),
             "folder: DIR/data/split.csv has 1 class(es) both for training and for testing, the first a; testing needs "
             "unseen classes, leave each on one side"),
        Case("path that leaves the folder", "`data check folder`", sets.split("../x.png,a,train", "b/0.png,b,test"),
             "folder: DIR/data/split.csv lists ../x.png (line 2), which is not inside DIR/data; write it so"),
        Case("listed file that is not there", "`data check folder`",
             sets.split("a/0.png,a,train", "a/9.png,a,train", "b/0.png,b,test", "b/1.png,b,test"),
             "folder: DIR/data/split.csv holds 1 of 4 listed images not, the first DIR/data/a/9.png (line 3); complete "
             "it, or accept this with --allow-partial"),
        Case("unknown split", "`data check folder`", sets.split("a/0.png,a,training"),
             "folder: DIR/data/split.csv, line 2: each line is path,class,split, split one of train, test, query, "
             "gallery"),
        Case("other header", "`data check folder`", sets.split("a/0.png,a,train", header="file,label,split"),
             "folder: DIR/data/split.csv must begin with the header path,class,split (separated by , ; | or tab), not "
             "'file,label,split'"),
        Case("list not in UTF-8", "`data check folder`", sets.split("a/\udcff.png,a,train"),
             "folder: DIR/data/split.csv is not in UTF-8 (invalid start byte); save it as UTF-8"),
        Case("quote that is not closed", "`data check folder`", sets.split('"a/0.png,a,train'),
             "folder: DIR/data/split.csv is unreadable (unexpected end of data); look for a quote that is not closed"),
        Case("list as Excel writes it: byte order mark, semicolons", "`data check folder`", sets.excel,
             WORKS + "like one with commas"),
        Case("list with a first line sep=;, capitals in columns and splits, empty rows", "`data check folder`",
             sets.excel_by_hand, WORKS + "like one without"),
        Case("split named val", "`data check folder`", sets.split("a/0.png,a,train", "b/0.png,b,val"),
             "folder: DIR/data/split.csv, line 3: there is no split 'val', classes that choose the epoch are held out of "
             "train; write train or test"),
        Case("column there twice", "`data check folder`",
             sets.split("a/0.png,a,train,b", header="path,class,split,Class"),
             "folder: DIR/data/split.csv has the column 'class' twice; keep one"),
        Case("classes that differ only in case", "`data check folder`", sets.other_case,
             WORKS + "they are two classes, with a warning",
             "warning: folder: DIR/data: the classes A and a differ only in case, spaces or how letters are stored; if they are one class, write it in one way"),
        Case("images in a sub-folder of a class folder", "`data check folder`", sets.nested,
             WORKS + "they are left out, with a warning that counts them",
             "warning: folder: 1 thing(s) in DIR/data are ignored, being no images or folders of them, the first a/more; "
             "2 image(s) in sub-folders of class folders are not used"),
        Case("class folders one level deeper", "`train --data-folder`", sets.own("sets", write=sets.deeper),
             "own: no class folders with images in DIR/sets, but in DIR/sets/train and DIR/sets/val; name the folder that "
             "holds the classes, or write split.csv"),
        Case("no such folder", "`train --data-folder`", sets.own("nosuch"),
             "own: no folder DIR/nosuch; name the one that holds your images"),
        Case("a file in place of the folder", "`train --data-folder`", sets.own("file", write=sets.a_file),
             "own: DIR/file is no folder; name the one that holds your images"),
        Case("other header", "`train --data-folder`", sets.own("data", "file,label", "a/0.png,a"),
             "own: DIR/data/split.csv must begin with the header path,class (separated by , ; | or tab), not 'file,label'; a third column, split, is optional"),
        Case("path with backslashes", "`train --data-folder`", sets.own("data", "path;class", "a\\0.png;a"),
             "own: DIR/data/split.csv, line 2: write a\\0.png with / instead of \\"),
        Case("one class alone to test on", "`train --data-folder`",
             sets.own("data", "path,class,split", "a/0.png,a,test", "a/1.png,a,test", "b/0.png,b,train"),
             "own: DIR/data/split.csv has 1 class to test on, and among its images alone nothing can be confused; give "
             "at least 2 classes the split test"),
        Case("labels out of range", "`FileSet(name, paths, labels, class_names)`", sets.labels,
             "mine: labels must run from 0 to 1 without gaps; found 2 different ones; give every class at least one "
             "image"),
        Case("batch of more classes than there are", "`train`", sets.large_batch,
             "a batch draws 64 classes, the training set has 2; lower batch or raise samples_per_class"),
    ],
    "Weights": [
        Case("no network", "`train`", runs.no_network,
             "pretrained weights of vit_tiny_patch16_224.augreg_in21k cannot be had (no connection to huggingface.co); "
             "give the file with weights=FILE, allow the download, or take the one in the package, backbone=demo_vit"),
        Case("no such file", "`train`", runs.weights("none.pth", None),
             "weights DIR/none.pth: no such file; give a .safetensors or .pth file"),
        Case("a folder", "`train`", runs.weights("data", None),
             "weights DIR/data: a folder, no file; give a .safetensors or .pth file"),
        Case("nothing after the equals sign", "`train --set weights=`", runs.no_name_of_weights,
             "weights is empty; give a .safetensors or .pth file, or leave it out"),
        Case("another kind of file", "`train`", runs.weights("w.onnx", runs.junk),
             "weights DIR/w.onnx: unknown kind '.onnx'; give .safetensors, .pth, .pt, .bin or .npz"),
        Case(".pth cut short", "`train`", runs.weights("w.pth", runs.cut),
             "weights DIR/w.pth: unreadable (cut short or damaged); get the file again"),
        Case("pickled code", "`train`", runs.weights("w.pth", runs.bomb),
             f"weights DIR/w.pth: holds {open.__module__}.open besides tensors, and no code of a file is executed; save "
             "model.state_dict() alone"),
        Case("pickled code named .safetensors", "`train`", runs.weights("w.safetensors", runs.bomb),
             "weights DIR/w.safetensors: a torch file, which is never read under the name .safetensors; rename it to "
             ".pth"),
        Case("no table", "`train`", runs.weights("w.pth", runs.no_table),
             "weights DIR/w.pth: holds no table of tensors; save model.state_dict()"),
        Case("whole numbers", "`train`", runs.weights("w.safetensors", runs.whole_numbers),
             "weights DIR/w.safetensors: norm.bias is not a table of floating-point numbers; save model.state_dict()"),
        Case("infinite values", "`train`", runs.weights("w.safetensors", runs.infinite),
             "weights DIR/w.safetensors: norm.bias holds values that are not finite numbers; get the file again"),
        Case("a tensor of another shape", "`train`", runs.weights("w.safetensors", runs.other_shape),
             "weights DIR/w.safetensors: norm.bias has shape (7,), the model needs (96,); give a file saved for this "
             "backbone and image size"),
        Case("a tensor too few", "`train`", runs.weights("w.safetensors", runs.too_few),
             "weights DIR/w.safetensors: lacks norm.bias (1 missing, 0 unknown keys); give a file saved for this "
             "backbone"),
        Case("of another backbone", "`train`", runs.weights("w.safetensors", runs.other_backbone),
             "weights DIR/w.safetensors: has blocks.6.attn.proj.bias, which the model does not (0 missing, 12 unknown "
             "keys); give a file saved for this backbone"),
    ],
    "Checkpoints": [
        Case("cut short", "`train`, once more", runs.checkpoint(runs.halve),
             "checkpoint DIR/results/runs/RUN/checkpoint.pt: damaged, and no other is whole; delete it to start this run again"),
        Case("pickled code", "`train`, once more", runs.checkpoint(runs.explode),
             "checkpoint DIR/results/runs/RUN/checkpoint.pt: unreadable; delete it to start this run again"),
        Case("of another backbone", "`train`, once more", runs.checkpoint(runs.foreign(image_size=32)),
             "checkpoint DIR/results/runs/RUN/checkpoint.pt: of another run; delete it, or choose another results "
             "folder"),
    ],
    "Configurations": [
        Case("unknown key", "`train --set alhpa=1`", runs.config("alhpa=1"),
             "unknown key 'alhpa'; did you mean alpha?"),
        Case("wrong type", "`train --set epochs=many`", runs.config("epochs=many"),
             "epochs = 'many' must be of type int, not str"),
        Case("not one of the choices", "`train --set method=vpsp`", runs.config("method=vpsp"),
             "method = 'vpsp' must be one of 'frozen', 'full', 'linear', 'adapter', 'lora', 'vpt', 'vptsp'"),
        Case("impossible value", "`train --set alpha=2`", runs.config("alpha=2"), "alpha = 2.0 must be in [0, 1]"),
        Case("no number", "`train --set lr=NaN`", runs.config("lr=NaN"), "lr = nan must be a finite number"),
        Case("impossible pair", "`train --set batch=7 samples_per_class=2`", runs.config("batch=7", "samples_per_class=2"),
             "batch = 7 must be a multiple of samples_per_class = 2"),
        Case("no key=value", "`train --set alpha`", runs.config("alpha"), "--set alpha: write KEY=VALUE"),
        Case("unknown preset", "`train --preset cub`", runs.preset("cub", None),
             "unknown preset 'cub'; known: cub200-vits16, cub200-vitb16, cars196-vits16, cars196-vitb16, sop-vits16, "
             "sop-vitb16, inshop-vits16, inshop-vitb16, inaturalist-vitb16, cub200-vitti16, demo, cub200-dinov2-vits14, "
             "cub200-dinov2reg-vits14, cub200-dinov2reg-vitb14, cub200-siglip2-vitb16, cub200-tipsv2-vitb14, "
             "cub200-vits16-best, demo-best, smoke, or a .json file"),
        Case("preset that is no JSON", "`train --preset p.json`", runs.preset("p.json", "{alpha: 1}"),
             "preset DIR/p.json: unreadable (Expecting property name enclosed in double quotes: line 1 column 2 (char "
             "1)); give a file that a search has written"),
        Case("preset without keys", "`train --preset p.json`", runs.preset("p.json", "[1]"),
             "preset DIR/p.json: holds no keys and values; give a file that a search has written"),
    ],
    "Results": [
        Case("no run there", "`evaluate`", runs.no_run,
             "DIR/results holds no finished run (config.json is missing); give the folder of one"),
        Case("config.json with a key of another version", "`train`, once more",
             runs.results("config.json", lambda v: {**v, "prompt_mode": 1}),
             "DIR/results/runs/RUN/config.json: unknown key 'prompt_mode'; did you mean prompt_step, prompts, prompt_layers? "
             "(of another version?); use that one, or delete the folder and run it again"),
        Case("config.json cut short", "`evaluate`", runs.evaluated("config.json", lambda v: None),
             "DIR/results/runs/RUN/config.json: unreadable (cut short or damaged); delete the folder and run it again"),
        Case("metrics.json without record.json", "`train`, once more", runs.without("record.json"),
             "DIR/results/runs/RUN holds no finished run (record.json is missing); give the folder of one"),
        Case("queries.npz with pickled code", "`Run.queries`", runs.queries,
             "DIR/results/runs/RUN/queries.npz: unreadable (Object arrays cannot be loaded when allow_pickle=False); delete the folder and run it again"),
        Case("model.safetensors with one bit changed", "`evaluate`", runs.changed_model,
             "DIR/results/runs/RUN/model.safetensors: not what record.json has the checksum of (damaged, edited, or another "
             "run's); delete the folder and run it again"),
        Case("the same, its checksums made to fit", "`evaluate`", runs.other_model_resealed,
             "DIR/results/runs/RUN/model.safetensors: vit.prompts does not fit the config beside it; run it again, or get it again"),
        Case("record.json with one bit changed: of another torch", "`train`, once more", runs.record_bit,
             "DIR/results/runs/RUN/record.json: its content does not fit its checksum (damaged or edited); delete the folder and run it again"),
        Case("metrics.json with a better R@1", "`train`, once more", runs.results("metrics.json", lambda v: {**v, "R@1": 1.0}),
             "DIR/results/runs/RUN/metrics.json: not what record.json has the checksum of (damaged, edited, or another "
             "run's); delete the folder and run it again"),
        Case("decoded cache with pickled code", "`train`, once more", runs.cache,
             "cache DIR/cache/STORE: not whole; delete the folder, it will be made again"),
    ],
    "Embedders and indexes": [
        Case("saved embedder with one bit of a weight changed", "`evaluate`", models.saved(lambda path: models.flip(path, -1)),
             "DIR/bird.safetensors: damaged, or of another version (its tensors do not fit their checksum); get the file "
             "again, or save it again from its run"),
        Case("saved embedder of an older version", "`evaluate`", models.saved(models.old_format),
             "DIR/bird.safetensors: damaged, or of another version (format 1 is not known here); get the file again, or "
             "save it again from its run"),
        Case("another kind of file", "`evaluate bird.onnx`", models.saved(lambda path: None, "bird.onnx"),
             "DIR/bird.onnx is no saved embedder; give a run's folder, or what `Embedder.save` has written"),
        Case("index with one bit of a name changed", "`search`", models.damaged_index,
             "index DIR/results/index/index.safetensors: unreadable (its tensors do not fit their checksum); delete that file and "
             "call index again: python -m vptsp_core index DIR --model RUN --to DIR/results/index"),
        Case("model that was moved", "`search`, `index`", models.moved_model,
             "index DIR/results/index: its model is not at DIR/bird.safetensors any more; name its new place with "
             "--model"),
        Case("image that is not there", "`search`", models.absent_query, "image DIR/none.jpg: no such file; check the path"),
        Case("folder that holds an image that cannot be read", "`search`", models.unreadable_query,
             WORKS + "it is left out, with a warning, and the others are answered",
             "warning: 1 left out: image DIR/asked/bad.jpg: unreadable (the file is empty); replace the file"),
        Case("index in the folder of the images", "`index DIR --to DIR`", models.index_among_images,
             "DIR/data is in DIR/data, the folder of your images, where nothing is written; name a place outside of it with --to"),
    ],
    "Devices and disks": [
        Case("no such device", "`train --device banana`", runs.device("--device", "banana"),
             "device 'banana' cannot be used here; choose cpu, or cuda or mps where there is such a GPU"),
        Case("half precision without a GPU", "`train --set precision=fp16`", runs.half,
             "precision = 'fp16' needs an NVIDIA GPU, the device is cpu; use 'auto', 'bf16' or 'fp32'"),
        Case("GPU memory full in a step", "`train`", runs.failing(runs.full_gpu),
             "the GPU's memory is full in epoch 2; choose --checkpointing on, or lower batch, or --device cpu"),
        Case("GPU gone", "`train`", runs.failing(runs.lost_gpu),
             "the GPU failed in epoch 2 (CUDA error: unspecified launch failure); the same command resumes after the "
             "last finished epoch: start it again, or with --device cpu"),
        Case("memory of the machine full", "`train`", runs.failing(runs.full_machine),
             "the memory of this machine is full in epoch 2; lower batch"),
        Case("no space left for the checkpoint", "`train`", runs.full_disk,
             "cannot write DIR/results/runs/RUN/checkpoint.pt (No space left on device); choose another folder"),
        Case("no space left for decoded images", "`train`, cached pipeline", runs.full_cache,
             "cache DIR/cache: No space left on device; give another folder with --cache or VPTSP_CACHE, or set "
             "pipeline=classic to go without"),
        Case("read-only results folder", "`train`", runs.read_only,
             "cannot write DIR/results/runs/RUN (Permission denied); choose another folder"),
    ],
    "Notebooks": [
        Case("unknown key for every run", "`notebooks --set alhpa=1`", runs.notebooks("--set", "alhpa=1"),
             "unknown key 'alhpa'; did you mean alpha?"),
        Case("seeds that are none", "`notebooks --seeds a`", runs.notebooks("--seeds", "a"),
             "--seeds: expected numbers such as 0,1,2, not 'a'"),
        Case("a seed twice", "`notebooks --seeds 1,1`", runs.notebooks("--seeds", "1,1"),
             "seeds = [1, 1] name one twice: its run would count twice; give each once"),
        Case("no such notebook", "`notebooks --only table11`", runs.notebooks("--only", "table11"),
             "--only: no notebook begins with 'table11'; known: beyond_paper, explore, fig3_ablations, fig4_embedding_space, "
             "table10_latency, table1_peft_methods, table2_sota, table3_inaturalist, table4_components, table5_proxy_source, "
             "table6_cub200, table7_integration, table8_pretraining, table9_search, tour"),
        Case("unknown parameter", "`papermill tour.ipynb out.ipynb -p sedes 1`", runs.papermill(sedes=1),
             "unknown parameter 'sedes'; did you mean seeds?"),
        Case("notebook's own parameter of another type", "`papermill tour.ipynb out.ipynb -p queries many`",
             runs.papermill(queries="many"), "parameter 'queries' must be of type int, not 'many'"),
    ],
}  # fmt: skip
