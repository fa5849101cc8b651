"""What a search must know before it is believed: which learning rate ranks mixtures, what a seed does, what more tokens bring, what a slot takes.

Pure analysis of ordinary trials, free of torch: `design` says which trials, `analysis` what they show, `stored` where that is kept in the record.
`workers.calibrate` trains them.
"""
