"""Examples of every command, shown below its help; each can be typed as it stands.

Checked by: cli/test_start.py.
"""

from __future__ import annotations

from typing import Final

#: Command -> its examples.
EXAMPLES: Final = {
    "estimate": (
        "memcalc estimate llama-3.2-1b --gpu h100",
        "memcalc estimate meta-llama/Llama-3.1-8B --seq 8k --recompute full --json",
        "memcalc estimate ./config.json --stack hf --optimizer-impl fused --gpu 4090",
        "memcalc estimate gpt2 --timeline step.csv --save run.toml",
    ),
    "infer": (
        "memcalc infer llama-3-8b --gpu a100-80gb --batch 32 --context 8192",
        "memcalc infer qwen2.5-72b --gpu h100 --tp 4 --engine vllm --batch 64 --context 4k",
        "memcalc infer llama-3.1-8b --gpu 4090 --weights gguf:Q4_K_M --engine llama.cpp",
    ),
    "explain": ("memcalc explain llama-3.2-1b", "memcalc explain gpt2 --stack hf --json"),
    "solve": (
        "memcalc solve micro-batch llama-3.1-8b --gpu h100 --gpus 8 --fsdp",
        "memcalc solve seq llama-3.2-1b --gpu 4090 --recompute full --step 128",
        "memcalc solve gpus llama-3.1-70b --gpu h100 --fsdp",
        "memcalc solve batch llama-3.1-8b --gpu h100 --context 8k --engine vllm",
    ),
    "search": (
        "memcalc search gpt-3-175b --cluster dgx-h100 --gpus 1024 --global-batch 1536",
        "memcalc search llama-3.1-70b --gpu h100 --gpus 256 --global-batch 1024 --seq 8k --fix tp=8",
        "memcalc search llama-3.1-8b --gpu h100 --gpus 8 --global-batch 64 --stack megatron,torchtitan",
    ),
    "advise": (
        "memcalc advise llama-3.1-8b --gpu a100-80gb",
        "memcalc advise llama-3.1-70b --cluster dgx-h100 --gpus 64 --global-batch 512",
    ),
    "compare": (
        "memcalc compare llama-3.1-8b,qwen2.5-7b --gpu h100,h200 --micro-batch 1,2,4",
        "memcalc compare llama-3.1-8b --gpu h100 --gpus 8 --setup '--fsdp' --setup '--tp 8'",
        "memcalc compare llama-3.2-1b --gpu 4090 --seq 1k..16k*2 --csv -o lengths.csv",
    ),
    "chart": (
        "memcalc chart breakdown llama-3.1-8b --gpu h100 --fsdp --gpus 8 -o memory.png",
        "memcalc chart sweep llama-3.2-1b --gpu h100 --micro-batch 1..16 --seq 1k..16k*2",
        "memcalc chart timeline gpt2 -o step.svg",
    ),
    "report": ("memcalc report llama-3.1-8b --gpu h100 --gpus 8 --fsdp -o report.html",),
    "export": (
        "memcalc export llama-3.1-8b --gpus 8 --zero 3 --format deepspeed -o zero3.json",
        "memcalc export llama-3.1-8b --gpus 8 --fsdp --format torchtitan --tool-version 0.2",
    ),
    "import": (
        "memcalc import zero3.json --model llama-3.1-8b --gpus 8 --seq 4096 --gpu h100",
        "memcalc import train_gpt3_175b.sh --gpus 1024 --gpu a100-80gb",
    ),
    "verify": (
        "memcalc verify llama-3.2-1b --layers 4",
        "memcalc verify gpt2 --device cpu --seq 128 --chart memory.png",
    ),
    "measure": (
        "memcalc measure llama-3.1-8b --layers 8 --seq 8k --profile",
        "torchrun --nproc-per-node 8 -m memcalc measure llama-3.1-8b --fsdp",
    ),
    "calibrate": (
        "memcalc calibrate",
        "memcalc calibrate --out my-card.toml",
        "memcalc calibrate --contribute my-card",
    ),
    "train-time": (
        "memcalc train-time llama-3.1-8b --gpu h100 --gpus 64 --fsdp --tokens 1T",
        "memcalc train-time llama-7b --gpu a100 --samples 52k --epochs 3 --mfu 40",
    ),
    "mfu": (
        "memcalc mfu --tflops 100 --gpu a100",
        "memcalc mfu llama-3.1-8b --seq 8k --gpu h100 --tokens-per-s-per-gpu 10153",
    ),
    "accuracy": (
        "memcalc accuracy --confidence high --priceable yes",
        "memcalc accuracy --rows my-runs.csv --json",
        "memcalc accuracy --report --out my-report",
    ),
    "list": ("memcalc list", "memcalc list gpus"),
    "show": ("memcalc show h100", "memcalc show models llama-3.1-8b --json"),
    "doctor": ("memcalc doctor",),
    "diff": (
        "memcalc diff before.toml after.toml",
        "memcalc diff 'gpt2' 'gpt2 --recompute full'",
    ),
}
