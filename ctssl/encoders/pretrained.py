"""What an encoder can do beside `forward`: prepare a scan, embed it, be loaded, saved and shared."""


class Pretrained:
    spec = None
