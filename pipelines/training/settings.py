"""The typed schema of a training config: YAML and ``key=value`` overrides in, checked settings out."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ted_stream.files import stays_within
from ted_stream.methods import METHODS, Method

from .bounds import check_bounds
from .durations import Duration, parse_duration

__all__ = [
    "INTERVAL_UNITS",
    "METHOD_NAMES",
    "MODELS_OF",
    "SCHEDULE_UNITS",
    "TRAINERS",
    "ConfigError",
    "Data",
    "Model",
    "Optimizer",
    "Pruning",
    "Scheduler",
    "Settings",
    "beyond_the_run",
    "check_choice",
    "counts_batches",
    "epochs",
    "load_settings",
    "mistaken",
    "read_yaml",
    "replaced",
    "schedule_times",
    "settings_of",
    "steps",
]

METHOD_NAMES = ("none", *METHODS)
_EXPECTED = {bool: "true or false", int: "a whole number such as 8", float: "a number such as 0.1", str: "text"}


class ConfigError(ValueError):
    """A config that cannot be used, with the setting's name and what to write instead."""


@dataclass
class Data:
    """Where the samples are and how they are batched."""

    path: str = MISSING
    """Folder or URI that `ted-stream prepare` made."""
    cache: str | None = None
    """Local folder for the shards of a remote dataset."""
    in_memory: bool = False
    """Hold all images on the device instead of reading them; for decoded images on a local disk that fit."""
    batch_size: int = 128
    """Samples per training step, over all ranks."""
    drop_last: bool = False
    """Leave out what is left of an epoch for its last batch, drawn anew every epoch; with in_memory alone. A batch of a
    few rows is as large a step as any other, and of a small dataset one in few."""
    eval_batch_size: int = 512
    """Samples per evaluation step, over all ranks."""
    num_workers: int = 0
    """Reading processes per rank; 0 reads in the training process."""
    shuffle: bool = True
    """Read the training samples in another order in every epoch."""
    shuffle_algo: str = "py1e"
    """How streaming shuffles: `py1e`, `py1br`, `py1s`, `py2s` or `naive`."""
    num_canonical_nodes: int | None = None
    """streaming's unit of determinism; null leaves it to streaming."""
    image_size: int | None = None
    """Side of the square that a JPEG becomes: 224. Only for JPEGs, which need it."""
    augment: str = "none"
    """`none`; of decoded images `crop_flip`: random crop from the image padded by an eighth of its side in black (4
    pixels of 32), and random flip; of JPEGs `random_resized_crop`: a random part of 8 to 100 % of the area, and
    random flip."""
    color_jitter: float = 0.0
    """Largest share by which brightness, contrast and saturation change after `random_resized_crop`; 0.4 is usual."""
    skip_list: str | None = None
    """Train on the fixed subset that this skip-list keeps."""


@dataclass
class Model:
    """The model and its own options; null leaves an option to the model."""

    name: str = MISSING
    """The network."""
    channels: list[int] | None = None
    """Channels of each stage."""
    batch_norm: bool | None = None
    """Normalise by the batch."""
    label_smoothing: float | None = None
    """Share of the target that all classes get."""
    channels_last: bool | None = None
    """Memory layout of images that some GPUs are faster with."""
    n_layer: int | None = None
    """Layers."""
    n_head: int | None = None
    """Attention heads."""
    n_embd: int | None = None
    """Width of the model."""
    dropout: float | None = None
    """Share that is dropped."""
    pretrained: str | None = None
    """Weights to start from: a folder, or a name on the Hugging Face hub."""
    dtype: str | None = None
    """What the weights beside adapters are held in: `float32`, or `bfloat16`, which takes half the memory."""
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass instead of keeping them."""
    lora_r: int | None = None
    """Rank of the adapters (LoRA) that are trained in place of the weights; null trains all."""
    lora_alpha: int | None = None
    """Adapters are multiplied by this divided by lora_r; null takes twice lora_r."""
    lora_dropout: float | None = None
    """Share that is dropped of what enters an adapter."""
    lora_targets: list[str] | None = None
    """Names of the layers that get adapters; null takes those that peft knows of the architecture."""


@dataclass
class Optimizer:
    """The optimizer and its own options; null leaves an option to the optimizer."""

    name: str = "sgd"
    """The optimizer."""
    lr: float = MISSING
    """Learning rate at its peak."""
    momentum: float | None = None
    """Weight of the steps before."""
    nesterov: bool | None = None
    """Look ahead along the momentum."""
    weight_decay: float | None = None
    """Weight decay; 0 decays nothing."""
    trust_coefficient: float | None = None
    """Scales the learning rate of each layer."""
    betas: list[float] | None = None
    """Weights of the steps before, in the mean and the variance of the gradients."""


@dataclass
class Scheduler:
    """The learning rate over time; null leaves an option to the scheduler."""

    name: str = "constant"
    """How the learning rate goes on."""
    warmup: str | None = None
    """Linear warm-up: `20ba`, `1ep`, `0.1dur`."""
    final: float | None = None
    """Learning rate at the end as a share of the start."""
    milestones: list[str] | None = None
    """Times as of `warmup`, at each of which the learning rate is multiplied by `gamma`."""
    gamma: float | None = None
    """See milestones."""
    max_lr: float | None = None
    """Peak of OneCycle; null takes optimizer.lr."""
    pct_start: float | None = None
    """Share of the run in which the learning rate rises."""
    div_factor: float | None = None
    """The learning rate begins at max_lr divided by this."""
    final_div_factor: float | None = None
    """The learning rate ends at its first value divided by this."""
    cycle_momentum: bool | None = None
    """Let the momentum fall while the learning rate rises, and rise while it falls."""


def settings_of(method: str) -> list[str]:
    """What can be set of a pruning method; of ``none`` nothing."""
    return [option.name for option in fields(METHODS[method])] if method in METHODS else []


@dataclass
class Pruning:
    """The pruning method and how it runs. Beside these the section has what can be set of the methods, by name.

    Null leaves a setting to the method. Without a method, settings have no effect, so that one file serves both.
    """

    method: str = "none"
    """`none`, or a dynamic method that `ted-stream methods` lists."""
    progress: str | None = None
    """How far the learning rate comes in a pruned epoch: its share of the `samples`, of their `tokens`, or one of the
    `epochs`; null takes samples, or epochs where a method's counts are its own."""
    output_layer: str | None = None
    """Dotted name of the layer that makes the logits, where it is not found."""

    @property
    def given(self) -> dict[str, Any]:
        """Values of the methods' settings, by name, where there is one."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: value for name, value in values.items() if name in _OPTIONS and value is not None}

    @cached_property
    def value(self) -> Method | None:
        """The method with its settings.

        Raises:
            ConfigError: it does not have such a setting, lacks one, or refuses a value.
        """
        if self.method == "none":
            return None
        has, given = settings_of(self.method), self.given
        for name in given:
            if name not in has:
                raise ConfigError(
                    f"pruning.{name}: {self.method} has no such setting, it has {', '.join(has)}; "
                    f"take it out of the file, or set pruning.{name}=null."
                )
        lacking = [option.name for option in fields(METHODS[self.method]) if option.default is REQUIRED]
        for name in lacking:
            if name not in given:
                raise ConfigError(f"no value for pruning.{name}, which {self.method} needs.")
        try:
            return METHODS[self.method](**given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"pruning: {error}") from error


# The settings of all methods with their types, as they declare them; null leaves one to the method.
_OPTIONS = {name: get_type_hints(METHODS[method])[name] | None for method in METHODS for name in settings_of(method)}
_PruningSection = make_dataclass("Pruning", [(name, hint, None) for name, hint in _OPTIONS.items()], bases=(Pruning,))


@dataclass
class Settings:
    """One training run."""

    run_name: str = MISSING
    """Name of the run, and of its folder."""
    trainer: str = "composer"
    """What runs the training loop: `composer`, or `loop`, a plain PyTorch loop that needs no Composer."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    pruning: Pruning = field(default_factory=_PruningSection)
    max_duration: str = MISSING
    """In epochs: `8ep`; without pruning also in batches, `1000ba`, the last epoch perhaps in part."""
    seed: int = 0
    """Of the weights, the order of the samples, augmentation, ties and draws."""
    folder: str = "runs/${run_name}"
    """Run folder: skip-lists, scores, manifest, checkpoints, result.json."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    precision: str = "fp32"
    """`fp32`; or autocast to 16 bits, `amp_bf16` or `amp_fp16`, the latter with scaled gradients."""
    device_train_microbatch_size: int | None = None
    """Samples of a rank's batch that go through the model at a time, gradients adding up; null takes all at once."""
    fsdp: bool = False
    """Shard model and optimizer over the ranks (FSDP2) instead of replicating them."""
    compile: bool = False
    """Run the model through `torch.compile`."""
    eval_interval: str = "1ep"
    """Test this often, and at the end: `1ep`, `500ba`; with Composer also `sp`, `tok` and `dur`."""
    save_interval: str | None = None
    """Write checkpoints this often, and at the end; null writes none."""
    autoresume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    save_model: bool = True
    """Write a model that began as `model.pretrained` into `model/` of the run folder when it is trained."""
    load_path: str | None = None
    """Go on from this checkpoint; the run folder must be the one that it was written with."""
    progress_bar: bool = True
    """Show Composer's bars or a line per epoch of the loop, and with `ted-stream train` what every epoch kept."""


_LORA = ("lora_alpha", "lora_dropout", "lora_targets")
# What each choice is called and which of its section's options it takes.
CHOICES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "model": {
        "convnet": frozenset({"channels", "batch_norm", "label_smoothing", "channels_last"}),
        "resnet18_cifar": frozenset({"label_smoothing", "channels_last"}),
        "resnet50": frozenset({"label_smoothing", "channels_last"}),
        "resnet9": frozenset({"label_smoothing", "channels_last"}),
        "gpt": frozenset({"n_layer", "n_head", "n_embd", "dropout"}),
        "causal_lm": frozenset(
            {"pretrained", "dtype", "gradient_checkpointing", "lora_r", "lora_alpha", "lora_dropout", "lora_targets"}
        ),
        "bert": frozenset({"n_layer", "n_head", "n_embd", "dropout"}),
        "sequence_classifier": frozenset(
            {"pretrained", "dtype", "gradient_checkpointing", "lora_r", "lora_alpha", "lora_dropout", "lora_targets"}
        ),
    },
    "optimizer": {
        "sgd": frozenset({"lr", "momentum", "nesterov", "weight_decay"}),
        "adamw": frozenset({"lr", "betas", "weight_decay"}),
        "lars": frozenset({"lr", "momentum", "weight_decay", "trust_coefficient"}),
    },
    "scheduler": {
        "constant": frozenset({"warmup"}),
        "linear": frozenset({"warmup", "final"}),
        "cosine": frozenset({"warmup", "final"}),
        "multistep": frozenset({"warmup", "milestones", "gamma"}),
        "onecycle": frozenset({"max_lr", "pct_start", "div_factor", "final_div_factor", "cycle_momentum"}),
    },
}
PROGRESS = ("epochs", "samples", "tokens")
TRAINERS = ("composer", "loop")
PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
# Units of times, in which every trainer counts the same, and those of how often a trainer does what.
SCHEDULE_UNITS: tuple[str, ...] = ("ep", "ba", "dur")
INTERVAL_UNITS: Mapping[str, tuple[str, ...]] = {"composer": ("ep", "ba", "dur", "sp", "tok"), "loop": ("ep", "ba")}
SHUFFLES = ("naive", "py1br", "py1e", "py1s", "py2s")  # streaming's, which takes seconds to import
# Ways to augment, by the kind of prepared dataset that they are for.
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = {
    "images": ("none", "crop_flip"),
    "jpeg": ("none", "random_resized_crop"),
    "instructions": ("none",),
    "texts": ("none",),
}
_OF_IMAGES = ("convnet", "resnet18_cifar", "resnet50", "resnet9")
# Models, by the kind of prepared dataset that they are for.
MODELS_OF: Mapping[str, tuple[str, ...]] = {
    "images": _OF_IMAGES,
    "jpeg": _OF_IMAGES,
    "instructions": ("gpt", "causal_lm"),
    "texts": ("bert", "sequence_classifier"),
}
DTYPES = ("float32", "bfloat16")


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a config file and apply overrides.

    Args:
        path: a YAML file of the keys of `Settings`.
        overrides: ``section.key=value``, later ones win.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: an unknown key (the nearest valid one is named), a value of the wrong type or range, or a
            setting without a value.
    """
    return _merged(OmegaConf.structured(Settings), [(str(path), read_yaml(path)), *_parsed(overrides)])


def read_yaml(path: str | Path) -> DictConfig:
    """The settings by name that a file holds, not looked at.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: it holds no YAML, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}.")
    try:
        given = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors share no base with OmegaConf's
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path} must hold settings by name, found a {type(given).__name__}.")
    return given


def replaced(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """A checked copy of settings with other values.

    Args:
        settings: stay as they are.
        changes: values by dotted key.

    Raises:
        ConfigError: as `load_settings`.
    """
    given = OmegaConf.create()
    for key, value in changes.items():
        OmegaConf.update(given, key, value)
    return _merged(OmegaConf.structured(settings), [("changes", given)])


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, DictConfig]]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"the override {override!r} is not of the form key=value.")
        given = OmegaConf.from_dotlist([override])
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        value = read["value"]
        if isinstance(value, (bool, int, float)) and _holds_text(key):
            OmegaConf.update(given, key, text)  # a name stays 007 or 1e3, whatever YAML makes of it
        yield f"the override {override!r}", given


def _merged(base: DictConfig, layers: Sequence[tuple[str, DictConfig]]) -> Settings:
    for where, layer in layers:
        _check_keys(OmegaConf.to_container(layer, resolve=False), Settings, where)
        try:
            base = OmegaConf.merge(base, layer)  # pyright: ignore[reportAssignmentType]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {mistaken(error, Settings)}") from error
    missing = sorted(OmegaConf.missing_keys(base))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}; set it in the file or as key=value.")
    try:
        settings = OmegaConf.to_object(base)
    except OmegaConfBaseException as error:
        raise ConfigError(mistaken(error, Settings)) from error
    assert isinstance(settings, Settings)
    _check_values(settings)
    return settings


def _check_keys(given: Any, schema: type, where: str, prefix: str = "") -> None:
    """Refuse keys that the schema does not know, at every level."""
    if not isinstance(given, Mapping):
        name = prefix.rstrip(".")
        raise ConfigError(f"{where}: {name} is a section, expected settings by name, found {given!r}.")
    types = _hints(schema)
    for key, value in given.items():
        if key not in types:
            raise ConfigError(f"{where}: {_unknown(str(key), prefix, list(types))}")
        if types[key] in (bool, bool | None) and isinstance(value, (int, float)) and value not in (0, 1):
            raise ConfigError(f"{where}: {prefix}{key} is {value}, expected {_EXPECTED[bool]}.")
        if is_dataclass(types[key]):
            _check_keys(value, types[key], where, f"{prefix}{key}.")  # pyright: ignore[reportArgumentType]


def _unknown(key: str, prefix: str, valid: Sequence[str]) -> str:
    elsewhere = [path for path in _paths(Settings) if path.rpartition(".")[2] == key]
    if elsewhere:  # the right name in the wrong section
        return f"no setting {prefix}{key}; did you mean {elsewhere[0]}?"
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if nearest:
        return f"no setting {prefix}{key}; did you mean {prefix}{nearest[0]}?"
    return f"no setting {prefix}{key}; there is {', '.join(f'{prefix}{name}' for name in sorted(valid))}."


def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(_PruningSection if schema is Pruning else schema)


def _holds_text(key: str) -> bool:
    """Whether a setting is text, by its dotted key."""
    return _kind(key, Settings) in (str, str | None)


def _kind(key: str, schema: type) -> Any:
    """The type of a setting, by its dotted key; ``None`` where there is no such setting."""
    kind: Any = schema
    for part in key.split("."):
        kind = _hints(kind).get(part) if isinstance(kind, type) and is_dataclass(kind) else None
    return kind


def mistaken(error: OmegaConfBaseException, schema: type) -> str:
    """What to say of a value that the schema does not take.

    Args:
        error: of OmegaConf, which names the setting.
        schema: whose setting it is.
    """
    name, reason = str(error.full_key), (error.msg or str(error)).splitlines()[0]
    kind = _kind(name.split("[")[0], schema)
    kinds = [other for other in get_args(kind) or (kind,) if other is not type(None)]
    if len(kinds) != 1:
        return f"{name}: {reason}."
    elements = get_args(kinds[0])
    expected = _EXPECTED.get(elements[0] if elements and "[" in name else kinds[0])
    if expected is None and elements:
        expected = f"a list in brackets, of {_EXPECTED.get(elements[0])} each"
    if expected is None:
        return f"{name}: {reason}."
    return f"{name} is {'empty' if error.value is None else repr(error.value)}, expected {expected}."


def _paths(schema: type, prefix: str = "") -> Iterator[str]:
    for name, kind in _hints(schema).items():
        if is_dataclass(kind):
            yield from _paths(kind, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield f"{prefix}{name}"


def _check_values(settings: Settings) -> None:
    check_choice("trainer", settings.trainer, TRAINERS)
    check_choice("precision", settings.precision, PRECISIONS)
    check_choice("pruning.method", settings.pruning.method, METHOD_NAMES)
    if settings.pruning.progress is not None:
        check_choice("pruning.progress", settings.pruning.progress, PROGRESS)
    _ = settings.pruning.value
    check_choice("data.shuffle_algo", settings.data.shuffle_algo, SHUFFLES)
    check_choice("data.augment", settings.data.augment, sorted({*chain(*AUGMENTATIONS.values())}))
    for section, choices in CHOICES.items():
        options = getattr(settings, section)
        check_choice(f"{section}.name", options.name, list(choices))
        for option in fields(options):
            if option.name == "name" or getattr(options, option.name) is None:
                continue
            if option.name not in choices[options.name]:
                warnings.warn(f"{section}.{option.name} has no effect: {options.name} does not take it.", stacklevel=4)
    _check_model(settings.model, settings.precision)
    if settings.scheduler.name == "multistep" and not settings.scheduler.milestones:
        raise ConfigError("scheduler.milestones: multistep needs at least one, as times: [30ep, 60ep].")
    if settings.pruning.output_layer is not None and not settings.pruning.output_layer.strip():
        raise ConfigError("pruning.output_layer is empty; name a layer, or set null to have it found.")
    _check_trainer(settings)
    _check_times(settings)
    steps(settings, 1)
    try:
        check_bounds(settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.data.color_jitter and settings.data.augment != "random_resized_crop":
        raise ConfigError(
            f"data.color_jitter is {settings.data.color_jitter}, but data.augment is {settings.data.augment}; "
            "set data.augment=random_resized_crop, or data.color_jitter=0."
        )
    if not stays_within(settings.run_name):
        raise ConfigError(
            f"run_name is {settings.run_name!r}, which is no folder within runs/; give a name such as cifar10-1, and "
            "folder= to write elsewhere."
        )


def _check_trainer(settings: Settings) -> None:
    """What a trainer cannot do, or two settings together."""
    if settings.fsdp and settings.model.channels_last:
        raise ConfigError("fsdp cannot shard weights with channels last; set model.channels_last=false.")
    if settings.fsdp and settings.optimizer.name == "lars":
        raise ConfigError("fsdp: lars takes the norms of whole layers, and these are sharded; set optimizer.name=sgd.")
    if settings.fsdp and settings.precision == "amp_fp16" and settings.trainer == "loop":
        raise ConfigError(
            "fsdp: the loop does not scale gradients that are sharded; set precision=amp_bf16, or trainer=composer."
        )
    if settings.fsdp and settings.compile and settings.trainer == "loop":
        raise ConfigError("fsdp: the loop compiles whole models, and not sharded ones; set compile=false.")
    if settings.autoresume and settings.save_interval is None:
        raise ConfigError("autoresume goes on from checkpoints: set save_interval, for example to 1ep.")


def schedule_times(scheduler: Scheduler) -> dict[str, str]:
    """The times that a learning-rate schedule goes by, by the dotted names of their settings."""
    times, taken = {}, CHOICES["scheduler"][scheduler.name]
    if "warmup" in taken and scheduler.warmup is not None:
        times["scheduler.warmup"] = scheduler.warmup
    if "milestones" in taken:
        times |= {f"scheduler.milestones[{at}]": time for at, time in enumerate(scheduler.milestones or ())}
    return times


def _check_model(model: Model, precision: str) -> None:
    takes = CHOICES["model"][model.name]
    if "pretrained" in takes and model.pretrained is None:
        raise ConfigError(f"no value for model.pretrained, which {model.name} needs: a folder, or a name on the hub.")
    if model.dtype is not None:
        check_choice("model.dtype", model.dtype, DTYPES)
    if model.dtype == "bfloat16" and model.lora_r is None:
        raise ConfigError(
            "model.dtype is bfloat16, in which steps of a usual learning rate round to nothing; it is for the frozen "
            "weights beside adapters: set model.lora_r, or model.dtype=float32 with precision=amp_bf16."
        )
    if model.dtype == "bfloat16" and model.name == "sequence_classifier" and precision == "fp32":
        raise ConfigError(
            "model.dtype is bfloat16 and precision fp32, which the float32 head of a classifier does not take; set "
            "precision=amp_bf16, or model.dtype=float32."
        )
    for name in _LORA if "lora_r" in takes and model.lora_r is None else ():
        if getattr(model, name) is not None:
            raise ConfigError(f"model.{name} is of adapters, and model.lora_r is null, so there are none; set both.")


def _check_times(settings: Settings) -> None:
    times = {f"scheduler.milestones[{at}]": time for at, time in enumerate(settings.scheduler.milestones or ())}
    if settings.scheduler.warmup is not None:
        times["scheduler.warmup"] = settings.scheduler.warmup
    units: dict[str, tuple[str, ...]] = dict.fromkeys(times, SCHEDULE_UNITS)
    for name in ("eval_interval", "save_interval"):
        if (interval := getattr(settings, name)) is not None:
            times[name], units[name] = interval, INTERVAL_UNITS[settings.trainer]
    for name, time in times.items():
        try:
            parse_duration(time, units[name])
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
    end = _duration(settings)
    for name, time in schedule_times(settings.scheduler).items():
        duration = parse_duration(time, SCHEDULE_UNITS)  # other units: once the data are known
        if duration.unit == end.unit and duration.value > end.value:
            raise beyond_the_run(name, time, settings.max_duration)


def beyond_the_run(name: str, time: str, end: str) -> ConfigError:
    """Of a time of the learning-rate schedule that the run does not last for."""
    return ConfigError(
        f"{name} is {time}, but the run ends after {end} by max_duration: the learning rate would never come there. "
        "Set an earlier time, a share of the run such as 0.1dur, or a longer max_duration."
    )


def steps(settings: Settings, length: int) -> int:
    """The batches of ``max_duration`` on full data.

    Args:
        settings: of the run.
        length: batches of an epoch on full data.

    Raises:
        ConfigError: it is of no form that there is, or in batches though epochs are pruned.
    """
    duration = _duration(settings)
    if duration.unit == "ba" and settings.pruning.method != "none":
        raise ConfigError(
            f"max_duration is {settings.max_duration!r}, but an epoch that is pruned has fewer batches; give epochs "
            "such as '8ep', or set pruning.method=none."
        )
    return round(duration.in_batches(length=length, steps=0))


def _duration(settings: Settings) -> Duration:
    try:
        return parse_duration(settings.max_duration, ("ep", "ba"))
    except ValueError as error:
        raise ConfigError(f"max_duration: {error}") from error


def epochs(settings: Settings, length: int | None = None) -> int:
    """The epochs of ``max_duration``, the last perhaps in part.

    Args:
        settings: of the run.
        length: batches of an epoch on full data; needed where the duration may be in batches.

    Raises:
        ConfigError: it is in batches, and an epoch's length is not given.
    """
    if length is not None:
        return -(-steps(settings, length) // length)
    if counts_batches(settings):
        raise ConfigError(f"max_duration is {settings.max_duration!r}, expected epochs such as '8ep'.")
    return steps(settings, 1)


def counts_batches(settings: Settings) -> bool:
    """Whether ``max_duration`` is in batches."""
    return settings.max_duration.endswith("ba")


def check_choice(name: str, value: str, valid: Sequence[str]) -> None:
    """Refuse a word that is none of these, naming them and the nearest.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in valid:
        nearest = difflib.get_close_matches(value, valid, n=1)
        hint = f"did you mean {nearest[0]}? There" if nearest else "there"
        raise ConfigError(f"{name}: no {value!r}; {hint} is {', '.join(valid)}.")
