"""Semantic textual similarity: do the cosines of pairs of sentences have the order of the scores that
people gave them? It measures the text encoder by itself.
"""

from collections.abc import Callable

from evaluate.encoder import Encoder
from evaluate.retrieval import encode_texts
from evaluate.sets.kinds import SimilaritySet
from evaluate.tally import Tally


def compare_sentences(
    encoder: Encoder, dataset: SimilaritySet, advance: Callable[[int], None] = lambda count: None
) -> dict[str, Tally]:
    """Spearman's rank correlation of cosines with scores; an item is a pair of sentences."""
    # A sentence that is in several pairs is encoded once.
    texts = list(dict.fromkeys(text for pair in dataset.sentences for text in pair))
    row_of = {text: row for row, text in enumerate(texts)}
    vectors = encode_texts(encoder, texts)

    first, second = (
        vectors[[row_of[pair[side]] for pair in dataset.sentences]].double() for side in (0, 1)
    )
    cosines = (first * second).sum(1, keepdim=True).numpy()
    advance(len(cosines))

    return {"spearman": Tally(cosines, dataset.scores[:, None], statistic="spearman")}
