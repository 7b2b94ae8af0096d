"""What the keeper is made of. The standard library only: what must not die should do little."""
