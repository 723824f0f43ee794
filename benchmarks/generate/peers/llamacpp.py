"""llama.cpp's own server on a GGUF, in an environment of its own: python llamacpp.py GGUF PORT THREADS."""

import sys
import threading

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
params.n_ctx = 2048
params.n_parallel = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
