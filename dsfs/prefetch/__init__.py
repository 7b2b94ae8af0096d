"""What will be wanted next. Pure policy: events in, wants out; no clock, no disk, no network."""
