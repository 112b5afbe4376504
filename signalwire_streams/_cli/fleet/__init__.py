"""``signalwire-streams fleet``: runs that many hosts share, and that go on when one of them dies."""
