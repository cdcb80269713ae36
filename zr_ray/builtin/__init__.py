"""The factory of the shipped assets: how the tiny judges and the tiny generator are built and pre-trained."""
