"""What retrieval costs and what it misses, against FAISS itself and against comparing with all."""
