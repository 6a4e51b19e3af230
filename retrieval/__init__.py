"""Vectors and ids in, candidates out: a FAISS index that knows which model made its vectors.

`ItemIndex` in this process, or `retrieval.milvus.MilvusIndex` in a database where one machine is too
small: both are a `CandidateIndex`. Arrays in, arrays out; nothing here ever sees a model.

A process that uses both torch and faiss should import torch first: each ships its own OpenMP
runtime, and loading them the other way round crashes or hangs on some machines.
"""

from retrieval.index import ItemIndex, SearchResult
from retrieval.manifest import IndexManifest, IndexMismatch
from retrieval.protocol import CandidateIndex

__all__ = ["CandidateIndex", "IndexManifest", "IndexMismatch", "ItemIndex", "SearchResult"]
