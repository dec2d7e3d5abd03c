"""The Processing algorithms: one file each, each a mapping from parameters to a job."""
