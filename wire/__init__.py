"""The protocols on the wire as pure codecs, and the one front door that speaks them over any `AnswerService`.

Owns bytes on sockets and nothing about how a request is answered. The codecs (`native`, `oip`) do no I/O; `door` and
`serve` do nothing else. Import the module you need: this package imports none of them.
"""
