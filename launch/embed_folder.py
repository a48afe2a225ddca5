"""The folder of vectors that launch.embed and launch.index make, shard by shard."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import flags as options
from launch import main as cli
from research.data.corpus import (
    CorpusText,
    describe_corpus,
    find_corpus,
    locate_texts,
)
from research.inference.embedder import Embedder
from research.inference.index.vector_shards import (
    embed_to_shards,
    list_shards,
    read_transform,
)
from research.text.chunking import Chunking
from research.transforms.pipeline import VectorTransform

# Function of some files that yields their texts.
ReadTexts = Callable[[Sequence[Path]], Iterable[CorpusText]]


def embed_folder(
    output: Path,
    files: list[Path],
    read: ReadTexts,
    chunk: Chunking | None,
    *,
    role: str = "document",
    shard_size: int,
    allow_empty: bool,
    normalize: bool | None = None,
    format: str = "npy",
    one_vector: bool = False,
) -> tuple[Embedder, dict[str, Any]]:
    """Embeds the texts of a corpus into the shards that a folder lacks.

    Args:
        output: The folder.
        files: The files of the corpus.
        read: What reads them.
        chunk: How documents are cut; None embeds them as one text.
        role: The role of the texts.
        shard_size: Number of texts of a shard.
        allow_empty: Whether a text may be empty.
        normalize: Whether vectors are scaled to length 1; None for the model's own.
        format: "npy", or "parquet" with where the texts are in their files.
        one_vector: Whether every text needs to have a single vector.

    Returns:
        The embedder, and the result of the command.

    Raises:
        ValueError: The folder holds something else, or as in `embed_to_shards`.
    """
    # One pass that finds errors in the input, before hours of work.
    described = describe_corpus(files, read=read)
    embedder = make_role_embedder(
        chunk, role, normalize, allow_empty, read_folder_transform(output)
    )
    if one_vector and embedder.kind != "dense":
        kind = embedder.kind.replace("_", "-")
        raise ValueError(
            f"--faiss needs one vector per text; those of {options.MODEL.value} are "
            f"{kind}"
        )
    # Shards hold rows of one width
    if embedder.kind == "sparse":
        raise ValueError(
            f"the vectors of {options.MODEL.value} are sparse, which go to one file: "
            "launch.embed --output=vectors.npz"
        )
    manifest = {
        "texts": sum(file["texts"] for file in described),
        "shard_size": shard_size,
        "format": format,
        "normalize": embedder.model.normalize,
        "role": role,
        "files": described,
        **options.describe_embedder(embedder),
    }
    if embedder.model.quantizer is None:
        manifest["dtype"] = "float32"
    # What the transform was fitted to
    if options.TRANSFORM_TEXTS.value is not None:
        fitted_to = find_corpus([options.TRANSFORM_TEXTS.value])
        manifest["transform_texts"] = describe_corpus(fitted_to, allow_blank=True)
    texts = read_places(files, read, with_columns=format != "npy")
    made = embed_to_shards(embedder, texts, output, manifest, cli.log, role=role)
    return embedder, {
        "output": str(output),
        "shards": len(list_shards(output, manifest)),
        "shards_made": made,
        "texts": manifest["texts"],
        "dim": manifest["dim"],
    }


def make_role_embedder(
    chunk: Chunking | None,
    role: str,
    normalize: bool | None,
    allow_empty: bool,
    transform: VectorTransform | None = None,
) -> Embedder:
    """The embedder of texts of a role, which the model must have."""
    if chunk is not None and role != "document":
        raise ValueError(
            f"--role={role} does not go with --chunk={options.CHUNK.value}, which cuts "
            "documents"
        )
    # A model has the prompts that it was trained with
    model = options.load_model()
    roles = dict.fromkeys(("document", "query", *model.prompts))
    if role not in roles:
        raise ValueError(f"--role={role}: {options.MODEL.value} has {', '.join(roles)}")
    return options.make_embedder(
        model,
        chunk,
        normalize=normalize,
        allow_empty=allow_empty,
        transform=transform,
    )


def read_folder_transform(folder: Path) -> VectorTransform | None:
    """The transform of a folder of vectors; None if it has none, or is not there yet.

    Raises:
        ValueError: --transform is another one.
    """
    transform = read_transform(folder)
    if transform is not None and options.TRANSFORM.value not in (None, transform.text):
        raise ValueError(
            f"{folder} was embedded with --transform={transform.text!r}, not "
            f"{options.TRANSFORM.value!r}"
        )
    return transform


def read_places(
    files: list[Path], read: ReadTexts, *, with_columns: bool = False
) -> Iterator[tuple[Any, ...]]:
    """Yields the name, the text and the place of every text.

    Args:
        files: The files of the corpus.
        read: What reads them.
        with_columns: Whether the number of its file, its line and its first byte in
            the file follow, as `vector_shards.COLUMNS` names them.
    """
    if not with_columns:
        for text in read(files):
            yield text.name, text.text, text.place
        return
    for text, number, offset in locate_texts(files, read(files)):
        yield text.name, text.text, text.place, number, text.line, offset
