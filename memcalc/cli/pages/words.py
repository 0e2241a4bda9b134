"""What the option table cannot say of a command: its question, its prose, its exit status, its page.

`GROUPS` orders the first screen of `memcalc --help` by the question a user has. `ABOUT` has a row a
command. Examples are in `cli/examples.py`, options in `cli/options.py`.
Checked by: cli/test_help.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: A question and the commands that answer it: every command is in exactly one.
GROUPS: Final = (
    ("Does it fit, how fast is it?", ("estimate", "infer", "train-time", "mfu")),
    ("What should I use?", ("search", "solve", "advise", "compare")),
    ("Where does it go, and why?", ("explain", "diff", "chart", "report")),
    ("What of my framework's settings?", ("export", "import")),
    ("Is it true?", ("verify", "measure", "calibrate", "accuracy")),
    ("What is known, what is installed?", ("list", "show", "doctor")),
)

_MODEL: Final = (
    "a profile (memcalc list models), a Hub id or a path: config.json, its directory, a .safetensors "
    "file or a model's TOML"
)
#: Positional argument as `cli/options.py: COMMANDS` shows it -> what it is.
ARGUMENTS: Final = {
    "MODEL": _MODEL,
    "[MODEL]": _MODEL,
    "[KIND]": "models, gpus, stacks, clusters, weights, engines or calibrations",
    "KIND": "what is drawn; see below",
    "WHAT": "micro-batch, seq, gpus or layers of training; batch or context of serving",
    "NAME": "a name that `memcalc list` prints, in any usual spelling",
    "FILE": "DeepSpeed JSON, accelerate YAML, torchtitan TOML or flags, a Megatron-LM script, or "
    "arguments in quotes",
    "A": "run file (--save), result (--json), or a quoted `MODEL --option ...`",
    "B": "the same, to compare with A",
}


class About(NamedTuple):
    """Prose of a command, its exit statuses beside those of all commands, and its page of docs/."""

    text: str
    status: tuple[tuple[int, str], ...] = ()
    page: str = ""


_DONE: Final = ((0, "done, whatever fits"),)
_FITS: Final = ((0, "it fits, or no GPU was named"), (3, "it does not fit"))
_STEPS: Final = (
    (1, "the run broke"), (3, "out of memory"), (130, "interrupted, with the record of what was done"),
)  # fmt: skip

ABOUT: Final[dict[str, About]] = {
    "estimate": About(
        "Prints the peak of a training step four ways (bytes of tensors, what the allocator hands out, what "
        "it holds, what the driver reports), what is alive at the peak, the peak of each phase, FLOPs, "
        "the time of a step and whether it fits the GPU. With several GPUs it speaks of the rank that "
        "needs most. Nothing is run and no GPU is needed.",
        _FITS, "layouts.md"),
    "infer": About(
        "Prints the memory of weights, cache and activations while a model serves --batch sequences of "
        "--context positions, the largest batch and context that fit, the time of the prompt's pass "
        "and of a token, and tokens/s.",
        _FITS, "serving.md"),
    "train-time": About(
        "A run is steps at one pace: the estimate's, or one that is stated (--mfu, --tokens-per-s, "
        "--step-time, ...). Energy counts the wall clock, the building (--pue) and lost time.",
        _DONE, "throughput.md"),
    "mfu": About(
        "Utilisation has several definitions, which differ by half and more for one run: all are printed by "
        "name. The throughput is what you state, or the estimate's.",
        _DONE, "throughput.md"),
    "search": About(
        "Every layout (tp, pp, cp, ep, dp, sharding), micro-batch and recomputation that divides the "
        "GPUs is priced, and the best are listed with the command of each. Options of a setup that are "
        "axes of the space fix it, as --fix does; all others hold for every setup.",
        ((0, "done"), (3, "nothing fits; what lacks least is listed"),
         (130, "interrupted, with what was found")),
        "search.md"),
    "solve": About(
        "Finds a value that fits whose next one does not, by two estimates whose commands are printed. "
        "The setup is stated as for estimate; of batch and context as for infer.",
        ((0, "found"), (3, "not even the smallest value fits")), "solve.md"),
    "advise": About(
        "Every change is an estimate with its own command: what it gives, what it costs. Changes that "
        "leave the training as it is come first, then more GPUs, then other arithmetic, then other training.",
        _DONE, "advise.md"),
    "compare": About(
        "A table of every combination of the lists. What does not fit is a row that says by how much.",
        _DONE),
    "explain": About(
        "The operators of one micro-batch with the tensors that each keeps for backward, its FLOPs, and "
        "the formula of every total in the model's own sizes.", ((0, "done"),), "formulas.md"),
    "diff": About("Lists the settings that differ and how every number of memory and time moved.",
                  ((0, "done, whether or not they differ"),)),
    "chart": About(
        "The ending of -o says the form: .png, .svg, .pdf, or .csv and .json for the numbers; without "
        "-o it is drawn as text. A chart is drawn from its --json object and nothing else.",
        _DONE, "gallery.md"),
    "report": About(
        "One HTML file with everything in it, light and dark, that loads nothing from anywhere. Lists and "
        "--setup add a comparison; the page is about the first setup.", _DONE),
    "export": About(
        "Writes a setup as another tool's settings, reads them back, and names every option that they "
        "cannot state, with where the tool has it instead.", ((0, "done"),), "interop.md"),
    "import": About(
        "Reads another tool's settings and estimates them. Options beside the file win over it and say what "
        "it does not: the model, the GPU, the sequence length. Every key is accounted for.",
        _FITS, "interop.md"),
    "verify": About(
        "Runs real optimizer steps of the same decoder in plain PyTorch, on a GPU or a CPU, and holds "
        "the estimate against them. Needs torch (the extra `harness`).",
        ((0, "every figure is inside its band"), (4, "a figure lies outside its band, or the loss "
         "did not fall"), *_STEPS), "verify.md"),
    "measure": About(
        "Runs real training steps of a model and reports memory by phase, step times, tokens/s and "
        "utilisation. Needs torch (the extra `harness`). Under torchrun every rank is measured.",
        ((0, "measured"), (4, "the loss did not fall: the run does not train"), *_STEPS),
        "verify.md"),
    "calibrate": About(
        "Measures what kernels, memory, launches and links of this device reach, in some minutes, and "
        "keeps it as a calibration that --gpu local and verify use by themselves. --contribute writes "
        "a bundle that others can use. Needs torch (the extra `harness`).",
        ((0, "measured; what the device cannot do is listed"),
         (130, "interrupted, nothing was written")), "calibration.md"),
    "accuracy": About(
        "Prices measured runs through the options any user has and sets the prediction beside the figure.",
        ((0, "done, whatever the errors are"),), "accuracy.md"),
    "list": About("Without KIND, how many there are of each.", ((0, "done"),)),
    "show": About("KIND is needed only where two kinds have a name in common.", ((0, "done"),)),
    "doctor": About(
        "What is installed and what each missing package is for, the device and its driver, which "
        "calibration an estimate for it would use, where the user's files are, whether completion is "
        "installed, and whether verify could run.", ((0, "done, whatever is missing"),)),
}  # fmt: skip

_OUT: Final = "Write the result there"
#: What an option means for one command, where the table's text speaks of several.
SAID: Final = {
    **{("out", command): f"{_OUT}: .json, else text" for command in ABOUT},
    ("out", "chart"): f"{_OUT}: .png .svg .pdf .csv .json, else text",
    ("out", "compare"): f"{_OUT}: .csv .md .json .txt",
    ("out", "search"): f"{_OUT}: .csv .md .json .txt",
    ("out", "accuracy"): f"{_OUT}: .json; with --csv CSV, else text",
    ("out", "report"): "The page: .html; .json for the object it is made from; - is stdout",
    ("out", "export"): "Write the settings there",
    ("out", "calibrate"): "The profile's own file (.toml), or the result (.json)",
    **{("csv", command): "CSV with a header, a row a setup" for command in ABOUT},
    ("csv", "accuracy"): "CSV with a header, a row a figure",
    ("ops", "estimate"): "Add the ledger, an operator a row",
    ("ops", "explain"): "What each operator allocates and frees",
    ("ops", "verify"): "Add the time of each operator",
    ("ops", "measure"): "Add the time of each operator",
    ("chart", "verify"): "Draw memory over the step, predicted and measured (.png, .svg or .pdf)",
    ("chart", "search"): "Draw the front of memory and speed (.png, .svg or .pdf)",
    ("weights", "infer"): "Format of the weights: memcalc list weights",
    ("device", "infer"): "gpu or cpu",
    ("engine", "estimate"): "With --rlhf: whose code generates",
    ("engine", "infer"): "Whose code serves",
}  # fmt: skip
#: Statuses that every command has, beside 0.
COMMON_STATUS: Final = (
    (2, "bad input, an unwritable file or a missing package: one line on stderr"),
    (1, "a bug of ours; --debug shows the traceback"),
    (130, "interrupted"),
)
#: Variable -> what it does, for every command.
ENVIRONMENT: Final = (
    ("NO_COLOR", "No colour on a terminal; there is none in a pipe or a file anyway"),
    ("XDG_CONFIG_HOME", "The user's calibrations are in memcalc/ below it [~/.config]"),
    ("XDG_DATA_HOME", "Records of verify and measure are in memcalc/ below it [~/.local/share]"),
    (
        "HF_HUB_CACHE, HF_HOME",
        "Where configs of Hub ids are looked for; nothing is ever downloaded",
    ),
)
#: How values are written, for the commands with options of a setup.
VALUES: Final = (
    "Sizes of sequences, contexts and batches take k = 1024 (8k = 8192); tokens and samples take "
    "decimal k, M, B, T; memory takes GB or GiB.",
)
#: Commands whose options take lists.
LISTS: Final = (
    "Lists: 1,2,4; ranges: 1..8, 1..8:2 (steps of 2), 1k..16k*2 (doubling); all are crossed.",
)
