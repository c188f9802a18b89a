"""Networks of your own: `architecture: networks.<module>:<function>` in params.yaml. DVC sees each change in here."""
