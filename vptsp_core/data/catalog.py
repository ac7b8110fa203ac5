"""One description of each published data set. Nothing here reads a disk or a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vptsp_core.data import cars196, layouts
from vptsp_core.data.base import OWN
from vptsp_core.data.layouts import Reader


@dataclass(frozen=True)
class Part:
    """One file of a data set. It is not fetched if the data set's folder already holds what it ``makes``."""

    file: str  # its name in DIR/downloads
    makes: str  # the folder in an archive, or the name of the file itself
    sources: tuple[str, ...] = ()  # addresses, tried in this order; if empty, a person must fetch the file
    checksum: str = ""  # "md5:..." or "sha256:..." as published; a part with sources has one


@dataclass(frozen=True)
class DataSet:
    """The description of a data set."""

    name: str
    title: str
    folder: str  # its name in --data DIR
    reader: Reader  # lists the images of that folder by split
    counts: Mapping[str, tuple[int, int]]  # (classes, images) of each split, as published
    parts: tuple[Part, ...]  # the files to get
    home: str
    terms: str
    citation: str
    tree: str  # the layout, for people
    steps: tuple[str, ...] = ()  # instructions for a person, if a part has no source; one line per step
    aliases: tuple[str, ...] = ()  # other names of its folder, e.g. in its archive


_PUBLISHED = (
    DataSet(
        name="cub200",
        title="Caltech-UCSD Birds-200-2011",
        folder="cub200",
        reader=layouts.list_birds,
        aliases=("CUB_200_2011", "CUB-200-2011"),
        counts={"train": (100, 5_864), "test": (100, 5_924)},
        parts=(
            Part(
                "CUB_200_2011.tgz",
                makes="CUB_200_2011",
                sources=(
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                    "http://www.vision.caltech.edu/visipedia-data/CUB-200-2011/CUB_200_2011.tgz",
                ),
                checksum="md5:97eceeb196236b17998738112f37df78",
            ),
        ),
        home="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        terms="non-commercial research and education; the photographs belong to their authors",
        citation="Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset. CNS-TR-2011-001, "
        "2011",
        tree="cub200/CUB_200_2011/images/001.Black_footed_Albatross/*.jpg ... (first 100 of 200 classes for training)",
    ),
    DataSet(
        name="cars196",
        title="Stanford Cars",
        folder="cars196",
        reader=cars196.list_cars,
        aliases=("stanford_cars", "Stanford_Cars", "StanfordCars", "stanford-cars-dataset"),
        counts={"train": (98, 8_054), "test": (98, 8_131)},
        parts=(
            Part("cars_annos.mat", makes="cars_annos.mat", checksum="md5:b407c6086d669747186bd1d764ff9dbc"),
            Part("car_ims.tgz", makes="car_ims", checksum="md5:d5c8f0aa497503f355e17dc7886c3f14"),
        ),
        home="http://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        terms="non-commercial research and education; the photographs belong to their authors",
        citation="Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3dRR, 2013",
        tree="cars196/cars_annos.mat, cars196/car_ims/*.jpg (first 98 of 196 classes for training)",
        steps=(
            "The links on the home page are dead; no other public home is known to us.",
            "Find the original files: car_ims.tgz (16,185 images, "
            "md5 d5c8f0aa497503f355e17dc7886c3f14) and cars_annos.mat (md5 b407c6086d669747186bd1d764ff9dbc).",
            "Put both into {downloads} and run {get}: it verifies and unpacks them.",
            "Or put class folders that sort in the order of the class numbers into {folder}/images; or, into {folder}, "
            "cars_train and cars_test with cars_train_annos.mat and cars_test_annos_withlabels.mat.",
        ),
    ),
    DataSet(
        name="sop",
        title="Stanford Online Products",
        folder="online_products",
        reader=layouts.list_online_products,
        aliases=("Stanford_Online_Products",),
        counts={"train": (11_318, 59_551), "test": (11_316, 60_502)},
        parts=(
            Part(
                "Stanford_Online_Products.zip",
                makes="Stanford_Online_Products",
                sources=(
                    "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
                    "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
                ),
                checksum="md5:7f73d41a2f44250d4779881525aea32e",
            ),
        ),
        home="https://cvgl.stanford.edu/projects/lifted_struct/",
        terms="research; no licence is published with the images, which come from eBay",
        citation="Oh Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding. "
        "CVPR 2016",
        tree="online_products/Stanford_Online_Products/: Ebay_{train,test}.txt, bicycle_final/*.JPG ...",
    ),
    DataSet(
        name="inshop",
        title="DeepFashion In-Shop Clothes Retrieval",
        folder="inshop",
        reader=layouts.list_inshop,
        aliases=("In-shop Clothes Retrieval Benchmark", "In-shop_Clothes_Retrieval_Benchmark", "In_shop"),
        counts={"train": (3_997, 25_882), "query": (3_985, 14_218), "gallery": (3_985, 12_612)},
        parts=(
            Part("list_eval_partition.txt", makes="list_eval_partition.txt"),
            Part("img.zip", makes="img"),
        ),
        home="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        terms="non-commercial research, by an agreement with MMLAB, The Chinese University of Hong Kong",
        citation="Liu, Luo, Qiu, Wang, Tang: DeepFashion: Powering Robust Clothes Recognition and Retrieval. CVPR 2016",
        tree="inshop/list_eval_partition.txt, inshop/img/{MEN,WOMEN}/<kind>/<item>/*.jpg",
        steps=(
            "Open the home page, follow its download link, and ask for access (the answer comes by mail).",
            "Fetch Img/img.zip (not img_highres.zip) and Eval/list_eval_partition.txt of the In-shop benchmark.",
            "Put both into {downloads} and run {get}: it unpacks them.",
            "If img.zip needs the password from that mail, unpack it yourself, so that {folder}/img/WOMEN exists.",
        ),
    ),
    DataSet(
        name="inaturalist",
        title="iNaturalist 2018, split by Brown et al.",
        folder="inaturalist",
        reader=layouts.list_inaturalist,
        aliases=("iNaturalist2018", "inaturalist2018", "iNaturalist"),
        counts={"train": (5_690, 325_846), "test": (2_452, 136_093)},
        parts=(
            Part("Inaturalist_train_set1.txt", makes="Inaturalist_train_set1.txt"),
            Part("Inaturalist_test_set1.txt", makes="Inaturalist_test_set1.txt"),
            Part(
                "train_val2018.tar.gz",
                makes="train_val2018",
                sources=("https://ml-inat-competition-datasets.s3.amazonaws.com/2018/train_val2018.tar.gz",),
                checksum="md5:b1c6952ce38f31868cc50ea72d066cc3",
            ),
        ),
        home="https://github.com/visipedia/inat_comp/tree/master/2018",
        terms="non-commercial research and education; every photograph has its author's own licence",
        citation="Van Horn et al.: The iNaturalist Species Classification and Detection Dataset. CVPR 2018; "
        "split: Brown, Xie, Kalogeiton, Zisserman: Smooth-AP. ECCV 2020",
        tree="inaturalist/Inaturalist_{train,test}_set1.txt, inaturalist/train_val2018/Aves/3136/*.jpg ...",
        steps=(
            "The images (about 120 GB) have a direct source; the two lists of the split have none.",
            "Find Inaturalist_train_set1.txt and Inaturalist_test_set1.txt, which came with the code of Smooth-AP "
            "(Brown et al., ECCV 2020).",
            "Put both into {downloads} and run {get}: it downloads and unpacks the images.",
        ),
    ),
)
CATALOG = {each.name: each for each in _PUBLISHED}
DATASETS = ("glyphs", *CATALOG, *OWN)
