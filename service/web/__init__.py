"""The doors for people and programs; Flask lives only here."""
