"""Convert jaxlm runs to ordinary Keras models, each conversion proven before its file appears."""
