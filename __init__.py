"""edgewise: quantized edge models, a certified confidence router, and a cloud fallback.

The names most programs need live in the rooms: `edgewise.edge.EdgeModel`, `edgewise.router.certify`,
`edgewise.router.Router`. Importing this package loads none of them.
"""

import os

__version__ = "0.1.0"

# onnxruntime and onnxruntime-genai read this when they are loaded: without it they write down, and may send, what runs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
