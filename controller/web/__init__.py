"""The bedside page: what the daemon tells it (`feed`), the process that serves it (`server`), the page itself (`static/`).

The process holds no stimulator, no loop and no file of the session: it reads what the daemon puts into a ring, and carries people's words
to guard's door for the page, where each needs a token. May import neither `supervisor` nor `drivers`.
"""
