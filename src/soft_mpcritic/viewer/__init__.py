"""The live viewer: a plant under its controller in a browser, with what the controller imagines and how it fares."""
