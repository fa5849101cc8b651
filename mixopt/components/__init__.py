"""Components: one proxy per domain, branched from one base, whose averages stand in for proxies trained on mixtures."""
