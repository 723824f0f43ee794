"""The commands, by what people do: make a model, certify it, examine, talk, serve.

Owns the options, their help, what is printed, and the exit code. Owns no work: each command builds a frozen value of
what was asked for and hands it to a job or a room, which is imported only then. `cli.py` makes the program of them.
"""
