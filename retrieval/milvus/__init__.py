"""`MilvusIndex`: the verbs of `ItemIndex` over a collection of a Milvus database.

For a catalogue that one machine is too small for. The same code runs against a server (a URL) and
against the embedded Milvus Lite (a path that ends in `.db`). Needs `pip install -e '.[milvus]'`.

What Milvus does not promise is made good here. Its indexes are approximate under a filter, even
`FLAT` while rows are fresh, and may come back short: so of few allowed items the vectors are got
and compared here, and an answer that is short is asked for again, in the end by reading every row.
Ids are never put into an expression, where quotes and backslashes would have to be escaped: a row's
key is a hash of its id, 32 hexadecimal digits.
"""

from retrieval.milvus.index import FoundItems, MilvusIndex

__all__ = ["FoundItems", "MilvusIndex"]
