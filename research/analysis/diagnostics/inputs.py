"""The inputs of a diagnostic: a model, its embedding options and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from research.eval.bias.documents import Document, make_documents, sample_texts
from research.eval.tasks.splits import remove_ending
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models.config import EncoderConfig
from research.models.encoder import truncate_depth
from research.text.chunk_rows import TokenizedText, tokenize_documents
from research.types import Evaluator, Params


@dataclass(frozen=True)
class DiagnosticInputs:
    """What every diagnostic of a command is given.

    Attributes:
        model: The model.
        texts: Different texts; () if the command has no corpus.
        seed: Seed of every choice of texts.
        sizes: Keyword arguments of `Embedder`, such as "depth", "dim", "max_length".
        evaluators: {name: evaluator} of the tasks that some diagnostics score.
    """

    model: EmbeddingModel
    texts: Sequence[str] = ()
    seed: int = 0
    sizes: Mapping[str, int | str] = field(default_factory=dict)
    evaluators: Mapping[str, Evaluator] = field(default_factory=dict)

    def make_embedder(self, **options) -> Embedder:
        """An embedder [N, D] with the command's options and further ones."""
        return Embedder(self.model, allow_empty=True, **self.sizes, **options)

    def make_depth_embedder(self, model: EmbeddingModel | None = None) -> Embedder:
        """An embedder at the embedding layer and after every block: [N, K, D].

        Args:
            model: A variant of the model; None for the model itself.
        """
        sizes = dict(self.sizes)
        plain = (model or self.model)._replace(dense=())
        depth = sizes.pop("depth", plain.config.depth)
        options = {"normalize": False, "allow_empty": True, **sizes}
        return Embedder(plain, depths=range(1 + depth), **options)

    def document_room(self) -> int:
        """Maximum number of tokens of a document without prompt and special tokens."""
        prompt = self.model.prompts.get("document", "")
        prompt_length = len(self.model.tokenizer.encode(prompt).ids)
        return self.sizes.get("max_length", self.model.max_length) - prompt_length

    def refuse_sizes(self, report: str, *names: str) -> None:
        """Raises ValueError if an option is set that the report would not heed."""
        for name in names:
            if name in self.sizes:
                raise ValueError(f"--{name} does not go with the report {report}")

    def list_texts(self) -> Sequence[str]:
        """The texts in the order of the corpus.

        Raises:
            ValueError: There is no corpus.
        """
        if not self.texts:
            raise ValueError("this report needs texts: give --corpus=FILE")
        return self.texts

    def list_tasks(self) -> Mapping[str, Evaluator]:
        """The evaluators of --tasks by name.

        Raises:
            ValueError: There are none.
        """
        if not self.evaluators:
            raise ValueError(
                "this report needs tasks: give --tasks=\"sts(data='FILE')\", or several"
            )
        return self.evaluators

    def sample_texts(self, count: int) -> list[str]:
        """At most `count` of the texts, drawn at random.

        Raises:
            ValueError: There is no corpus, or it is too small.
        """
        return sample_texts(self.list_texts(), count, self.seed)

    def make_documents(self, length: int, count: int) -> list[Document]:
        """Documents of at least `length` tokens, as `make_documents` joins them.

        Raises:
            ValueError: There is no corpus, or it is too short.
        """
        return make_documents(
            self.list_texts(),
            self.model.tokenizer,
            length=length,
            count=count,
            seed=self.seed,
        )

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Params, EncoderConfig, list[np.ndarray]]:
        """The encoder up to the command's depth, and the token ids of texts.

        Texts have the prompt of documents before them, and their special tokens.
        """
        tokenized = self.make_embedder().tokenize(texts, "document")
        return *self._truncate_model(), list(tokenized.rows[0].token_ids)

    def tokenize_documents(
        self, texts: Sequence[str]
    ) -> tuple[Params, EncoderConfig, list[TokenizedText]]:
        """As `tokenize`, with the texts' own tokens apart from the others."""
        model = self.model
        tokenized = tokenize_documents(
            model.tokenizer,
            texts,
            model.prompts.get("document", ""),
            self.sizes.get("max_length", model.max_length),
        )
        return *self._truncate_model(), list(tokenized)

    def _truncate_model(self) -> tuple[Params, EncoderConfig]:
        """The encoder up to the command's depth."""
        params, cfg = self.model.params, self.model.config
        return truncate_depth(params, cfg, self.sizes.get("depth", cfg.depth))


def name_data(path: str) -> str:
    """The name of data in a title: its folder if the file is a split or a pattern."""
    file = Path(path)
    stem = remove_ending(file.name)
    is_part = stem in ("train", "dev", "test") or "*" in stem
    return file.parent.name if is_part else stem
