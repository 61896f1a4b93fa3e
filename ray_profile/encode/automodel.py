"""Any encoder that transformers knows, on a GPU or a CPU: what runs where `bert.Bert` does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModel
from transformers.utils import logging as hf_logging


class HuggingFaceModel:
    """Token ids to hidden states through `AutoModel`.

    A GPU holds bf16 weights, which halves memory traffic and needs no loss scaling. A CPU keeps float32 weights and
    casts the matrix products only (autocast), for norms and softmax of an unknown architecture stay exact that way.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, bf16: bool) -> None:
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        lowered = bf16 and device.type == "cuda"
        self._model = model.eval().requires_grad_(False).to(device, torch.bfloat16 if lowered else torch.float32)
        self._device = device
        self._autocast = bf16 and not lowered

    def __call__(self, ids_BL: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (B, L, D) on the model's device; those past a text's end mean nothing."""
        mask_BL = None
        if lengths_B is not None:
            at_L = torch.arange(ids_BL.shape[1], device=self._device)
            mask_BL = (at_L < lengths_B[:, None]).long()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            h_BLD = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        assert isinstance(h_BLD, torch.Tensor)
        return h_BLD


def load(folder: Path) -> tuple[torch.nn.Module, list[str]]:
    """The model of a folder in float32, and the names of weights that the folder lacks.

    Raises `OSError`, `ValueError`, `KeyError`, `RuntimeError` or `SafetensorError` where it cannot be loaded.
    """
    with _quiet():
        model, report = AutoModel.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",  # torch's own, which picks the fastest kernel that the device has
            dtype=torch.float32,
            output_loading_info=True,
        )
    # A pooler is a trained head on [CLS] that no pooling here uses; anything else missing would be random numbers.
    assert isinstance(model, torch.nn.Module)
    return model, sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and load report: a worker's log is for a person, and we check the report."""
    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
