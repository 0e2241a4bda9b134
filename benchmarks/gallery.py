"""Draw every picture of docs/gallery.md, and the page.

    python -m benchmarks.gallery            # all pictures, half a minute
    python -m benchmarks.gallery sweep      # those whose name holds a word

Each picture is what its command writes. digests.json beside them keeps a digest of the object behind each:
unit/test_gallery.py computes the objects anew, so a picture that an estimate has left behind is found.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from memcalc.cli import search
from memcalc.cli.app import parse_arguments
from memcalc.cli.chart import drawing, found_of
from memcalc.output.charts.house import save
from memcalc.output.charts.search import draw as draw_front

ROOT: Final = Path(__file__).parent.parent
PICTURES: Final = ROOT / "docs" / "pictures"
DIGESTS: Final = PICTURES / "digests.json"
PAGE: Final = ROOT / "docs" / "gallery.md"
SEARCH: Final = "search"
_8B: Final = "llama-3.1-8b --gpu h100-80gb --precision bf16"
_70B: Final = "llama-3.1-70b --cluster dgx-h100 --gpus 64 --seq 4096"
_STAGES: Final = "--tp 8 --pp 4 --zero 1 --stack megatron --grad-accum 16"


class Picture(NamedTuple):
    """One picture: its file's name, the command without its `-o`, and what it shows. slow: seconds."""

    name: str
    command: str
    says: str
    slow: bool = False

    @property
    def kind(self) -> str:
        """Of `memcalc chart`, or search."""
        return self.command.split()[0]

    @property
    def shown(self) -> str:
        """The command as one types it."""
        if self.kind == SEARCH:
            return f"memcalc {self.command} --chart {self.name}.png"
        return f"memcalc chart {self.command} -o {self.name}.png"


GALLERY: Final = (
    Picture("breakdown-8b", f"breakdown {_8B} --micro-batch 2 --seq 4096 --optimizer-impl fused "
            "--recompute none,sac,sac-attention,full",
            "Where the memory of one step goes, by what is recomputed."),
    Picture("breakdown-70b", f"breakdown {_70B} --setup '--fsdp --recompute full' "
            f"--setup '--fsdp --recompute sac' --setup '{_STAGES}' "
            "--setup '--tp 4 --pp 4 --zero 1 --stack megatron --grad-accum 16'",
            "Four ways to lay 70 B parameters over 64 GPUs."),
    Picture("timeline-8b", f"timeline {_8B} --optimizer-impl fused --recompute sac",
            "Every allocation of a step in order; the peak is named by the operator that causes it."),
    Picture("timeline-70b", f"timeline {_70B} {_STAGES}",
            "The pipeline stage that needs most: micro-batches in flight pile up, then drain."),
    Picture("sweep-8b", f"sweep {_8B} --optimizer adamw-8bit --recompute full --micro-batch 1..16 "
            "--seq 1k..16k*2", "What fits, and how fast it is, over two axes."),
    Picture("sweep-70b", f"sweep {_70B} --fsdp --recompute none,sac,full --micro-batch 1,2,4,8",
            "An axis may be of words too."),
    Picture("sweep-line-8b", f"sweep {_8B} --recompute full --optimizer-impl fused "
            "--micro-batch 1..16", "One axis: memory with its band, and throughput."),
    Picture("compare-8b", "compare llama-3.1-8b,qwen2.5-7b --gpu h100-80gb,h200-141gb "
            "--precision bf16 --optimizer adamw-8bit --micro-batch 1,4 --recompute none,full "
            "--price 2.5", "Models, GPUs and setups beside each other, with cost."),
    Picture("compare-70b", "compare llama-3.1-70b --cluster dgx-h100 --gpus 64 --seq 4096 "
            f"--setup '--fsdp --recompute full' --setup '{_STAGES}' --micro-batch 1,2",
            "Two layouts on 64 GPUs."),
    Picture("roofline-8b", f"roofline {_8B} --optimizer-impl fused --recompute sac",
            "Every operator under the roofs of the device, sized by its share of the step."),
    Picture("roofline-70b", f"roofline {_70B} {_STAGES}",
            "The busiest rank of 64; what is not in an operator is said below."),
    Picture("pipeline-70b", f"pipeline {_70B} {_STAGES}",
            "The schedule of every stage, its bubble, and the memory each stage needs. (One GPU has no "
            "stages, so there is no such picture of it.)"),
    Picture("pipeline-70b-interleaved", f"pipeline {_70B} {_STAGES} --vpp 5 --schedule interleaved",
            "The same with five chunks a stage."),
    Picture("scaling-8b", "scaling llama-3.1-8b --cluster dgx-h100 --precision bf16 --seq 4096 "
            "--gpus 8..1024*2 --fsdp", "Weak scaling from one node to 128; stragglers are not modelled."),
    Picture("scaling-70b", "scaling llama-3.1-70b --cluster dgx-h100 --seq 4096 --gpus 64..1024*2 "
            "--fsdp --recompute full --weak --strong", "Weak and strong scaling.", slow=True),
    Picture("serving-8b", "serving llama-3-8b --gpu a100-80gb --engine vllm",
            "Serving: what a larger batch gains and costs, and the longest context that fits."),
    Picture("serving-70b", "serving llama-3-70b --gpu h100-80gb --engine vllm --tp 4 --context 8k",
            "The same of 70 B parameters over four GPUs."),
    Picture("search-70b", "search llama-3.1-70b --cluster dgx-h100 --gpus 64 --global-batch 256 "
            "--seq 4096", "The front of memory and speed over every layout of 64 GPUs."),
    Picture("accuracy", "accuracy --confidence high --priceable yes",
            "Published runs of others beside their estimates: those that state all that decides, on "
            "devices as they are sold.", slow=True),
)  # fmt: skip


def digest(found: Any) -> str:
    """Of a chart's object, its figures rounded to seven digits: the same on every machine."""
    text = json.dumps(_plain(found), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name != "memcalc"}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def found(picture: Picture) -> dict[str, Any]:
    """The object behind a picture."""
    if picture.kind == SEARCH:
        words = shlex.split(picture.command)[1:]
        value = search.found_of(search.prepared(parse_arguments(SEARCH, words)))
        of_the_clock = ("elapsed_s", "priced_s")
        return json.loads(json.dumps({k: v for k, v in value.items() if k not in of_the_clock}))  # type: ignore[no-any-return]
    arguments = parse_arguments("chart", shlex.split(picture.command))
    return json.loads(json.dumps(found_of(picture.kind, arguments)))  # type: ignore[no-any-return]


def page() -> str:
    """docs/gallery.md."""
    parts = [
        "# Gallery\n",
        "Every kind of `memcalc chart`, and of `memcalc search`, for one model on one GPU and one on 64;",
        "drawn by `python -m benchmarks.gallery`. The numbers behind a picture: the same command with",
        "`--json`, or `-o` with `.csv` or `.md`; `.svg`, `.pdf` and `--theme dark` draw it otherwise.\n",
    ]
    last = ""
    for one in GALLERY:
        if one.kind != last:
            parts.append(f"## {one.kind}\n")
            last = one.kind
        parts += [
            one.says + "\n",
            f"    {one.shown}\n",
            f"![{one.says}](pictures/{one.name}.png)\n",
        ]
    return "\n".join(parts)


def main(words: list[str]) -> None:
    """Draw the pictures whose name holds one of the words, or all; write the page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    digests = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    for one in GALLERY:
        if words and not any(word in one.name for word in words):
            continue
        value = found(one)
        draw = draw_front if one.kind == SEARCH else drawing(one.kind).draw
        save(str(PICTURES / f"{one.name}.png"), value, draw)
        digests[one.name] = digest(value)
        print(one.name)
    digests = {one.name: digests[one.name] for one in GALLERY if one.name in digests}
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
