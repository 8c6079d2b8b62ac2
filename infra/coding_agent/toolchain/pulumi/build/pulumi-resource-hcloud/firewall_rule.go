package main

import (
	"fmt"
	"net"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// ruleFields are the fields of a rule of a firewall.
func ruleFields() map[string]*schema.Schema {
	addresses := func() *schema.Schema {
		return &schema.Schema{
			Type: schema.TypeSet, Optional: true,
			Elem: &schema.Schema{Type: schema.TypeString, ValidateFunc: validNetwork},
		}
	}
	return map[string]*schema.Schema{
		"direction":       {Type: schema.TypeString, Required: true, ValidateFunc: oneOf("in", "out")},
		"protocol":        {Type: schema.TypeString, Required: true, ValidateFunc: oneOf("tcp", "udp", "icmp", "esp", "gre")},
		"port":            {Type: schema.TypeString, Optional: true},
		"source_ips":      addresses(),
		"destination_ips": addresses(),
		"description":     {Type: schema.TypeString, Optional: true},
	}
}

// rulesOf returns the rules that are wanted.
func rulesOf(d *schema.ResourceData) ([]hcloud.FirewallRule, error) {
	rules := []hcloud.FirewallRule{}
	for _, item := range d.Get("rule").(*schema.Set).List() {
		fields := item.(map[string]any)
		rule := hcloud.FirewallRule{
			Direction:   hcloud.FirewallRuleDirection(fields["direction"].(string)),
			Protocol:    hcloud.FirewallRuleProtocol(fields["protocol"].(string)),
			Port:        given(fields["port"].(string)),
			Description: given(fields["description"].(string)),
		}
		var err error
		if rule.SourceIPs, err = networksOf(fields["source_ips"].(*schema.Set)); err != nil {
			return nil, err
		}
		if rule.DestinationIPs, err = networksOf(fields["destination_ips"].(*schema.Set)); err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// asRules returns rules as a state has them.
func asRules(rules []hcloud.FirewallRule) (found []map[string]any) {
	for _, rule := range rules {
		fields := map[string]any{
			"direction": string(rule.Direction), "protocol": string(rule.Protocol),
			"source_ips": asNetworks(rule.SourceIPs), "destination_ips": asNetworks(rule.DestinationIPs),
		}
		if rule.Port != nil {
			fields["port"] = *rule.Port
		}
		if rule.Description != nil {
			fields["description"] = *rule.Description
		}
		found = append(found, fields)
	}
	return found
}

// given returns a text, or nothing where it is empty.
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func networksOf(set *schema.Set) (found []net.IPNet, err error) {
	for _, item := range set.List() {
		_, network, err := net.ParseCIDR(item.(string))
		if err != nil {
			return nil, err
		}
		found = append(found, *network)
	}
	return found, nil
}

func asNetworks(networks []net.IPNet) []string {
	found := make([]string, 0, len(networks))
	for _, network := range networks {
		found = append(found, network.String())
	}
	return found
}

// validNetwork refuses what is no network, and a network with the address of a host in it: the cloud would answer with
// another text than it was given, and every refresh would see a change.
func validNetwork(value any, key string) (warnings []string, errors []error) {
	address, network, err := net.ParseCIDR(value.(string))
	if err != nil {
		return nil, []error{fmt.Errorf("%s: %w", key, err)}
	}
	if !address.Equal(network.IP) {
		return nil, []error{fmt.Errorf("%s: %s is an address in the network %s", key, value, network)}
	}
	return nil, nil
}

func oneOf(allowed ...string) schema.SchemaValidateFunc {
	return func(value any, key string) (warnings []string, errors []error) {
		for _, each := range allowed {
			if value == each {
				return nil, nil
			}
		}
		return nil, []error{fmt.Errorf("%s: %q is none of %q", key, value, allowed)}
	}
}
