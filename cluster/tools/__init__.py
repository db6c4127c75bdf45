"""The commands around a run: what is looked at before one starts, how it gets to a cluster, and
what its record says afterwards. Nothing that runs imports from here."""
