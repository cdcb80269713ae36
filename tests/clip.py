"""A CLIP-family scorer of tiny size with random weights, as transformers saves one."""

from __future__ import annotations

from pathlib import Path


def write_tiny_clip(folder: Path, side: int = 32, seed: int = 0, longest: int = 16) -> Path:
    """A CLIPModel that reads images of `side` pixels and prompts of lower-case words, up to `longest` tokens."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    end = vocabulary["<|endoftext|>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower
        | {
            "vocab_size": len(words),
            "max_position_embeddings": longest,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config=tower | {"image_size": side, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=longest).save_pretrained(folder)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder
