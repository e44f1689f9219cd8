"""The torch side of `step.py`, run by it in a Python that has open_clip: training steps of CoCa on random data.

    python benchmarks/open_clip_step.py SETTINGS_AS_JSON

Prints one line of JSON. CoCa (Yu et al. 2022) as open_clip builds it: image tower, causal text tower, decoder with
cross-attention; softmax contrastive loss and caption loss with weight 2; AdamW; float32.
"""

import json
import statistics
import sys
import time

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss


def peak_memory_gb() -> float:
    """The most memory this process has held; `getrusage` would count what its parent held before it began."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e6


def main() -> None:
    """Builds the model, takes the steps, prints the result."""
    settings = json.loads(sys.argv[1])
    image, text, decoder = settings["image"], settings["text"], settings["decoder"]
    torch.manual_seed(0)
    text_config = {"context_length": settings["target_length"], "vocab_size": settings["vocab_size"]}
    model = CoCa(
        embed_dim=settings["joint_dim"],
        vision_cfg={
            "image_size": settings["image_size"],
            "patch_size": settings["patch_size"],
            "width": image["width"],
            "layers": image["depth"],
            "head_width": image["width"] // image["heads"],
            "mlp_ratio": image["mlp_dim"] / image["width"],
            "attentional_pool": True,
            "attn_pooler_heads": image["heads"],
            "output_tokens": True,
        },
        text_cfg=text_config
        | {
            "width": text["width"],
            "heads": text["heads"],
            "layers": text["depth"],
            "embed_cls": True,
            "output_tokens": True,
        },
        multimodal_cfg=text_config
        | {"width": decoder["width"], "heads": decoder["heads"], "layers": decoder["depth"], "attn_pooler_heads": 6},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.2)
    loss_of = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    size, batch = settings["image_size"], settings["batch_size"]
    images = torch.randn(batch, 3, size, size)
    # open_clip's CoCa reads one token less than the context: the last one is a target only.
    tokens = torch.randint(1, settings["vocab_size"], (batch, settings["target_length"]))
    seconds, processor_seconds = [], []
    for _ in range(1 + settings["steps"]):
        start, processor_start = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        outputs = model(images, tokens)
        loss = sum(
            loss_of(
                outputs["image_features"],
                outputs["text_features"],
                outputs["logits"],
                outputs["labels"],
                outputs["logit_scale"],
            )
        )
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    result = {
        "open_clip": open_clip.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_step": statistics.median(seconds[1:]),
        "processor_seconds_per_step": statistics.median(processor_seconds[1:]),
        "peak_rss_gb": peak_memory_gb(),
        "loss": float(loss),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
