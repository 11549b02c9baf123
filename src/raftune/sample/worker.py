"""What vLLM's workers on a CPU need besides their own: mixed into them by ``worker_extension_cls``, vLLM's own seam."""

from __future__ import annotations

from typing import Any

EXTENSION = "raftune.sample.worker.Whole"


class Whole:
    """New weights, and the output layer with them.

    vLLM's CPU build computes linear layers from packed copies of their weights. ``reload_weights`` renews the copies of
    the layers that it loads; an output layer that is tied to the input embedding is loaded with that, so its copy stays
    the old one (seen in 0.32: six in ten greedy answers were right, no error). Packing it again mends that.
    """

    reload_weights: Any  # of vLLM's Worker
    get_model: Any

    def reload_whole(self, weights_path: str) -> None:
        """``reload_weights`` from this folder, and the output layer packed again."""
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
            ParallelLMHead,
        )

        self.reload_weights(weights_path=weights_path)
        for layer in self.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
