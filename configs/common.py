"""The defaults: CLIP's own hyperparameters (paper, table 18). A config says what differs.

Not a run by itself: use another file of this folder.
"""

from ml_collections import ConfigDict

from clip_jax.models import architectures


def get_config(model: str = "ViT-B/32") -> ConfigDict:
    c = ConfigDict()
    c.workdir = ""  # where the run is kept; the same command resumes it
    c.seed = 0
    c.batch_size = 32_768  # pairs, over all devices
    c.accumulate = 1  # parts that a batch goes through the towers in; every negative counts
    c.steps = 390_625  # 32 epochs of 400 M pairs
    c.model = ConfigDict(architectures.architecture(model))
    c.weights = ConfigDict()  # what a fresh run starts from, instead of random numbers
    # a run's folder, or a file or folder of OpenAI's, open_clip's or transformers'
    c.weights.path = ""
    c.weights.resize = False  # positions, where its resolution or context is not the model's
    c.tokenizer = "clip"  # or sentencepiece:PATH.model, siglip:PATH.model, wordpiece:vocab.txt
    # float32, bfloat16, or mixed: bfloat16 products between float32 activations, for CPUs.
    # Parameters (but see optimizer.text_weights) and their updates are float32 in each.
    c.dtype = "bfloat16"
    c.remat = "full"  # none, dots, full: what of a layer is computed again going backwards
    # rows of each device that a layer of a Transformer takes at a time, so that they stay on the
    # chip; 0: all; -1: what the plans found best for the TPU, where remat is full
    c.chunk = ConfigDict({"image": -1, "text": -1})

    c.data = ConfigDict()
    # tars (braces and globs), a folder of pictures, a table (csv, tsv, jsonl, parquet, COCO's
    # json), a folder that `datasets` saved, or tfds:NAME:SPLIT
    c.data.train = ""
    # several of them, in place of train: name → data, weight or epochs, and what differs of
    # captions, caption_weights, image, root and filter; a weight is a source's share of the rows,
    # epochs how often its pairs come in an epoch of the mixture
    c.data.mix = ConfigDict()
    # of a table, the column of the pictures; empty: the one that looks so. Of tars and folders,
    # which pictures of an example are used, by what follows the stem (seg.png); empty: the plain
    c.data.image = ""
    c.data.root = ""  # of a table, the folder that paths in it start at; empty: its own
    c.data.separator = ""  # between the cells of a CSV or TSV, such as ; or tab; empty: as is found
    c.data.quoting = ""  # double; or none: a quotation mark in it is a character like others
    c.data.encoding = ""  # of a CSV, TSV or JSON lines, such as cp1252; empty: as is found
    # where indices of tars are kept: empty: the user's cache folder; beside: next to each tar; or a
    # folder, local or remote, that many hosts share
    c.data.index = ""
    # sites that web servers may redirect to, such as ("hf.co",); ("any",): all; the own one always
    c.data.redirects = ()
    c.data.max_bad_fraction = 0.01  # of pairs that are broken and left out; more end the run
    # templates over the fields of a pair's json, one of which is drawn; of a list {tags} says some
    # items, {tags:one} one, {tags:each} another one every epoch, {tags:all} all
    c.data.captions = ("{caption}",)
    c.data.caption_weights = ()  # how often each is drawn; empty: all alike
    c.data.filter = ConfigDict()  # which pairs are used; 0: all
    c.data.filter.min_side = 0  # pixels of the shorter side
    c.data.filter.max_side = 0  # pixels of the longer side
    c.data.filter.max_aspect = 0.0  # longer side over shorter
    c.data.filter.min_characters = 0  # of the caption, through the first template that can be
    c.data.filter.max_characters = 0
    c.data.filter.least = ConfigDict()  # field → least number, such as {"similarity": 0.3}
    c.data.filter.most = ConfigDict()  # field → greatest number
    # a picture with the bytes of one of so many pairs before it is left out; -1: of any before it
    c.data.filter.duplicates = 0
    c.data.token_dropout = 0.0  # share of a caption's tokens left out
    c.data.threads = 2  # batches made at once in a process
    c.data.workers = 0  # processes that make batches; 0: threads of this one
    c.data.prefetch = 4  # batches made ahead
    c.data.fast_decode = True  # JPEGs at the scale that the crops need, not the whole
    c.data.cache_mib = 0  # decoded pictures kept in memory, for sets that fit
    c.data.augment = ConfigDict()
    # fit: the paper's random crop, a square as tall as a wide picture; open_clip: its crop of
    # nearly the whole picture, with crop_ratio from 3/4 to 4/3 unless another is given
    c.data.augment.crop = "fit"
    c.data.augment.crop_scale = (0.9, 1.0)
    c.data.augment.crop_ratio = (1.0, 1.0)
    c.data.augment.flip = 0.0
    c.data.augment.rotate = 0.0
    c.data.augment.color = 0.0
    c.data.augment.hue = 0.0
    c.data.augment.gray = 0.0

    c.loss = ConfigDict()
    # dense, blockwise or ring: how the batch_size² pairings lie over the devices; auto: the
    # least memory that costs no time
    c.loss.layout = "auto"
    c.loss.block = 0  # rows of a tile; 0: the layout's own
    c.loss.label_smoothing = 0.0  # share of a target that is spread over the batch
    c.loss.mask_duplicates = False  # pairs of one caption are not each other's negatives

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # or lamb
    c.optimizer.learning_rate = 5e-4
    c.optimizer.final_learning_rate = 0.0
    c.optimizer.muon_learning_rate = 0.0  # above 0: Muon for the matrices, Adam for the rest
    c.optimizer.warmup_steps = 2_000  # updates: the rate rises to learning_rate in equal parts
    c.optimizer.schedule = "cosine"  # or linear: the way down from learning_rate
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.2
    c.optimizer.clip_norm = 0.0  # 0: no clipping
    c.optimizer.sharded = False  # its state lies over the data axis too (ZeRO)
    c.optimizer.moments = "float32"  # or bfloat16: half the optimizer's state, rounded by chance
    c.optimizer.text_weights = "float32"  # or bfloat16: the text tower's matrices, likewise

    c.mesh = ConfigDict()  # their product is the number of devices; -1: all that are left
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.log = ConfigDict({"every": 50, "tensorboard": True})
    c.checkpoint = ConfigDict({"every": 1_000, "keep": 2})
    c.evaluate = ConfigDict()
    c.evaluate.every = 5_000
    c.evaluate.batch_size = 64  # pictures, or texts, that each device takes at a time
    c.evaluate.pictures = 12  # random test pictures with their likeliest labels; 0: none
    c.evaluate.templates = ("{}", "a photo of a {}.")
    c.evaluate.caption = "{caption}"  # of a test picture, in retrieval
    # which evaluators: zero_shot, linear_probe, few_shot, retrieval, robustness, bias, overlap
    c.evaluate.suite = ("zero_shot", "retrieval")
    # name → data, and labels (a json list of names) with label (a field), where the data does not
    # say them itself; docs/sets.md has the rest
    c.evaluate.sets = ConfigDict()
    c.evaluate.standard = ()  # names of standard sets, such as ("cifar10", "imagenet")
    c.evaluate.folder = ""  # where the standard sets lie
    c.evaluate.dtype = ""  # empty: a run's own, float32 for weights of others
    c.evaluate.shots = (1, 2, 4, 8, 16)  # pictures a class in few-shot learning
    c.evaluate.seeds = 3  # draws of them
    c.evaluate.keep_features = True  # on disk, so that another evaluation need not encode again
    return c
