"""Vectors and ids in, candidates out: a FAISS index that knows which model made its vectors.

`ItemIndex` is what others use, `python -m retrieval.build` makes one from files, and
`retrieval.mining` finds hard negatives in it. Where one machine is too small,
`retrieval.milvus` has the same verbs over a database; both are a `CandidateIndex`. Arrays in,
arrays out; nothing here sees a model.

A process that uses both torch and faiss should import torch first: each ships its own OpenMP
runtime, and loading them the other way round crashes or hangs on some machines.
"""

from retrieval.index import ItemIndex
from retrieval.manifest import IndexManifest, IndexMismatch
from retrieval.protocol import CandidateIndex
from retrieval.snapshot import SearchResult

__all__ = ["CandidateIndex", "IndexManifest", "IndexMismatch", "ItemIndex", "SearchResult"]
