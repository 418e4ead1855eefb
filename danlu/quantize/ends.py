"""Embedding and head of a model in few bits: rounded each row by its groups, whatever the layers' method is.

A head that is tied to the embedding is it. Both are a group of their own of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from danlu.model.compute.grouped_embedding import factor_of
from danlu.model.formats.compressed import with_others
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from danlu.quantize.rtn import rounded
from danlu.quantize.written import digest_of

FORM = "pack-quantized"


class Ends:
    """What is quantized outside of a model's blocks: nothing where there is no scheme for it.

    Attributes:
        digests: of what the codes written stand for, by name in the files.
    """

    def __init__(self, scheme: Scheme | None) -> None:
        self._scheme = scheme
        self._names: list[str] = []
        self.digests: dict[str, str] = {}

    def find(self, model: Any, names: Mapping[str, str]) -> None:
        """The two in the model, called in the files as `names` has them.

        Raises ModelError for an embedding of another kind, ConfigError for groups that do not divide its rows.
        """
        if self._scheme is None:
            return
        embedding = model.get_input_embeddings()
        factor_of(embedding)
        self._scheme.groups(embedding.weight.shape[1])
        ends = (embedding, model.get_output_embeddings())
        own = [f"{name}.weight" for name, part in model.named_modules() if any(part is one for one in ends)]
        self._names = [names.get(name, name).removesuffix(".weight") for name in own]

    def tensors(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """What the files hold of the weight `name`; nothing where it stays as it is."""
        layer = name.removesuffix(".weight")
        if self._scheme is None or layer not in self._names:
            return {}
        grouped = rounded(weight, self._scheme)
        self.digests[layer] = digest_of(grouped)
        return FORMATS[FORM].tensors(layer, grouped, self._scheme)

    def told(self, config: dict[str, Any]) -> dict[str, Any]:
        """`quantization_config`, with what is said of both; a head that is tied is named as well, as others do."""
        if self._scheme is None:
            return config
        return with_others(config, FORM, self._scheme, self._names)
