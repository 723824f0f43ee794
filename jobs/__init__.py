"""Use cases that span rooms: certifying a bundle, evaluating a running gateway, examining a machine.

A job takes a frozen description, reports progress, and returns a value. Owns no rule: those are the rooms'. Prints
nothing.
"""
