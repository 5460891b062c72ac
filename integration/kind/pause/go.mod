module twill/integration/kind/pause

go 1.26.0
