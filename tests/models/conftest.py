"""The order in which networks are compared with their references."""


def pytest_collection_modifyitems(items):
    """Puts the zoo's tests of one network side by side: its weights are drawn once, and its programs compiled once."""
    places = [i for i, item in enumerate(items) if item.path.name == "test_zoo.py"]
    networks = {}
    for i in places:
        networks.setdefault(items[i].callspec.params["case"].backbone, []).append(items[i])
    # Within a network, each reference's checkpoint has its turn.
    ordered = [
        item for network in networks.values() for item in sorted(network, key=lambda item: item.callspec.params["case"])
    ]
    for i, item in zip(places, ordered, strict=True):
        items[i] = item
