"""edgewise: quantized edge models, a certified confidence router, and a cloud fallback.

The names most programs need live in the rooms: `edgewise.edge.EdgeModel`, `edgewise.router.certify`,
`edgewise.router.Router`. Importing this package loads none of them.
"""

__version__ = "0.1.0"
