"""The gin files that ship with flanjax; `--gin_file=flan_t5_xl.gin` finds them by bare name."""
