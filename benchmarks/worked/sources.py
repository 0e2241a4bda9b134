"""Where the figures of the worked cases are published. Key -> author, title, place.

"taught" is for rules that are handed on without an author: no page was found that may be named, and their
arithmetic is all there is to check.
"""

from __future__ import annotations

from typing import Final

SOURCES: Final[dict[str, str]] = {
    "zero": "Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, sections 3.1 and 7",
    "memory-notes": (
        "LLMs interview notes, page on memory (Chinese: da moxing xiancun wenti mian), sections 1 to 8; "
        "listed by github.com/km1994/LLMs_interview_notes"
    ),
    "training-notes": (
        "github.com/wdndev/llm_interview_note, questions on distributed training (folder 04), sections "
        "1.17 to 3.3; its section 3 follows Hugging Face's documentation on parallelism"
    ),
    "taught": "handed on in teaching notes; no page with an author was found",
    "llama-cpp": "llama.cpp's README of spring 2023, table of memory and disk (4-bit, 16-bit)",
    "chinese-llama": (
        "Cui, Yang, Yao 2023, arXiv:2304.08177, and github.com/ymcui/Chinese-LLaMA-Alpaca, its table of "
        "8-bit files; vocabulary 49,953"
    ),
    "vicuna": "LMSYS 2023, FastChat's README (github.com/lm-sys/FastChat): memory of inference",
    "vicuna-training": (
        "LMSYS 2023, FastChat's training script of Vicuna-7B for four A100 of 40 GB; 160 GB in all by the "
        "interview notes on memory, section 5"
    ),
    "chatglm-tuning": (
        "github.com/hiyouga/ChatGLM-Efficient-Tuning, hardware requirements (nvidia-smi, one V100 of 32 GB)"
    ),
    "chatglm-lora": "ChatGLM-6B's LoRA adapters of rank 8 on query_key_value, as handed on; rounded to MB",
    "belle": (
        "Sun et al. 2023, full-parameter and LoRA-based fine-tuning on Chinese instructions, "
        "arXiv:2304.08109, table of parameters and hours"
    ),
    "peft": (
        "Hugging Face, PEFT's README of 2023 (github.com/huggingface/peft): consumer hardware, one A100 "
        "of 80 GB"
    ),
    "bigscience": (
        "BigScience workshop 2021-22, github.com/bigscience-workshop/bigscience, "
        "train/tr11-176B-ml/chronicles-prequel.md, best TFLOPs (bf16)"
    ),
    "mt-nlg": "Smith et al. 2022, MT-NLG 530B, arXiv:2201.11990, sections 2 and 3",
    "llama": "Touvron et al. 2023, LLaMA, arXiv:2302.13971, section 2.4 and table 15",
    "alpaca": "Taori et al. 2023, Stanford Alpaca, crfm.stanford.edu/2023/03/13/alpaca.html",
    "chinchilla": "Hoffmann et al. 2022, arXiv:2203.15556, tables 3 and A3: about 20 tokens a parameter",
    "korthikanti": "Korthikanti et al. 2022, arXiv:2205.05198, table 2 and figure 7",
    "colossal": (
        "Colossal-AI's documentation and papers: 1D arXiv:1909.08053, 2D 2104.05343, 2.5D 2105.14500, "
        "3D 2105.14450"
    ),
    "offload": (
        "Ren et al. 2021, ZeRO-Offload, arXiv:2101.06840; Rajbhandari et al. 2021, ZeRO-Infinity, "
        "arXiv:2104.07857; PyTorch's CPUOffloadPolicy"
    ),
    "ppo": "Ouyang et al. 2022, InstructGPT, arXiv:2203.02155; TRL 1.0.0; states by ZeRO's arithmetic",
    "dpo": "Rafailov et al. 2023, DPO, arXiv:2305.18290; TRL 1.0.0; states by ZeRO's arithmetic",
    "cache": "Pope et al. 2022, arXiv:2211.05102: two tensors a layer, one row a KV head and position",
    "int8": "Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, appendix on inference speed",
    "tf32": "NVIDIA 2020, A100 architecture whitepaper, TF32; interview notes on memory, section 8.6",
}
