//go:build !linux

package main

import "fmt"

func main() { fmt.Println("fence: skipped: it needs Linux, for network namespaces") }
