"""Cards of the backbones, a family a file, without torch: what each is, what it expects, where its weights are."""
