"""An adapter whose model is not installed."""

from acme_engine import AcmeEngine


class BrokenAdapter:
    engine = AcmeEngine
