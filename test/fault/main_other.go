//go:build !linux

package main

import "fmt"

func main() { fmt.Println("fault: skipped: it needs Linux, for network namespaces") }
